"""The README's commands, run in a copy of the project as they stand, but for less time, on one shortened demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.children import Child, healthy
from tests import ROOT

SHORT = "--size 0.1 --cpt_epochs 1 --sft_epochs 1 --student_steps 5"
SHORTER = {"--run-time 10s": "--run-time 5s", "--max_steps 50": "--max_steps 5"}
NOTHING, LONGER = "error: no request was sent", ("--run-time 5s", "--run-time 60s")
GATEWAY = "python -m client.gateway"
SERVE = "python -m engines.serve"
RUN_ON = ("make", "tritonserver", "git ", "cd ", GATEWAY, SERVE)  # by tests of their own, or not here


def readme_commands() -> list[str]:
    """Every line after ``$`` in a console block, continued lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL))
    commands = re.findall(r"^\$ ((?:.*\\\n)*.*)$", blocks, flags=re.MULTILINE)
    return [re.sub(r"\s*\\\n\s*", " ", command) for command in commands]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, with this environment as its own."""
    copy = tmp_path_factory.mktemp("project") / "disranker"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


def run(command: str, project: Path) -> str:
    bin_folder = str(Path(sys.prefix) / "bin")
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "DEMO_FLAGS": SHORT}
    # The environment is filled already: make must not fill it again from the copy.
    command = re.sub(r"^make ", "make --old-file .venv/.installed ", command)
    for long, short in SHORTER.items():
        command = command.replace(long, short)

    def ended(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", command], cwd=project, env=environment, capture_output=True, text=True)

    result = ended(command)
    if NOTHING in result.stderr:  # on a machine that is too busy for it
        result = ended(command.replace(*LONGER))
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def demo(project: Path) -> str:
    return run("make demo", project)


@pytest.fixture(scope="module")
def server(project: Path, demo: str) -> Iterator[None]:
    (command,) = [command for command in readme_commands() if command.startswith("tritonserver")]
    with (project / "server.log").open("w") as log:
        environment = {**os.environ, "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
        process = subprocess.Popen(command.split(), cwd=project, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            Child(process, project / "server.log").wait_until(lambda: healthy(8000))
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_the_two_commands_come_first_and_the_four_uses_follow() -> None:
    commands = readme_commands()
    assert commands[:2] == ["make demo", "make test"]
    for start in ("tritonserver --model-repository", "python client/rank.py", "locust -f loadtest/"):
        assert any(command.startswith(start) for command in commands), start
    assert any(command.startswith("python -m trainer.distill") for command in commands)
    assert all(any(long in command for command in commands) for long in SHORTER)


def test_the_demo_prints_its_table_and_a_ranking(demo: str, project: Path) -> None:
    assert (project / "runs/demo/table.json").is_file()
    for system in ("random", "bm25", "teacher-without-cpt", "teacher", "student-on-labels", "student"):
        assert system in demo
    assert "python client/rank.py --query" in demo


@pytest.mark.parametrize("command", [command for command in readme_commands() if not command.startswith(RUN_ON)])
def test_a_command_of_the_readme_runs(command: str, project: Path, server: None) -> None:
    run(command, project)


def test_the_gateway_of_the_readme_answers(project: Path, server: None) -> None:
    (command,) = [command for command in readme_commands() if command.startswith(GATEWAY)]
    flags = [sys.executable, *command.split()[1:]]
    with subprocess.Popen(flags, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            assert said == "http://127.0.0.1:8080 serves ranker\n"
            with urllib.request.urlopen(f"{said.split()[0]}/health", timeout=60) as answer:
                assert json.load(answer) == {"status": "ready", "models": {"ranker": True}}
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
