"""The command ``tritonserver``: what it refuses, in one line, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.children import triton
from embedded_triton import environment
from embedded_triton.checks import asked_at, check, without
from embedded_triton.wheel import EmbeddedTritonError, find_wheel
from tests import ROOT
from tests.support.servers import (
    COMMAND,
    STOP_S,
    descendants,
    ports,
    starting,
    wait_until_ended,
    wait_until_ready,
)
from tests.support.waiting import eventually

SAID = """\
loading  student, version 1: openvino in fp32
ready    after a time
gRPC     127.0.0.1:{grpc}
HTTP     http://127.0.0.1:{http}
metrics  http://127.0.0.1:{metrics}/metrics
"""
SAYS = re.compile("loading |ready  |gRPC  |HTTP  |metrics  ")
CPU = "--model-config-name=cpu"


def refusal(*flags: str, command: tuple[str, ...] = (str(COMMAND),), **variables: str) -> str:
    """The one line of an exit code 2."""
    result = subprocess.run(
        [*command, *flags], env={**os.environ, **variables}, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """As a build leaves it, by its looks."""
    copy = tmp_path / "model_repository"
    for model in ("tokenizer", "student", "scores", "ranker"):
        shutil.copytree(ROOT / "model_repository" / model, copy / model, ignore=shutil.ignore_patterns("[0-9]*"))
        (copy / model / "1").mkdir()
        (copy / model / "1/model.py").touch()
    return copy


def test_a_repository_is_needed_and_must_exist(tmp_path: Path) -> None:
    for flags in ((), (CPU,)):
        assert "--model-repository is needed" in refusal(*flags)
    none = tmp_path / "none"
    assert f"--model-repository {none}: no such directory" in refusal(CPU, "--model-repository", str(none))


def test_a_student_must_be_built_for_a_processor_and_asked_for(repository: Path) -> None:
    flags = ("--model-repository", str(repository))
    asked = "configured for tensorrt_plan, which needs a GPU: use --model-config-name cpu"
    assert asked in refusal(*flags)
    (repository / "student/2").mkdir()
    (repository / "student/2/model.plan").touch()
    assert "student/2 was built for a GPU" in refusal(CPU, *flags)
    for version in (1, 2):
        shutil.rmtree(repository / f"student/{version}")
    line = refusal(CPU, f"--model-repository={repository}")
    assert "'student' is not built yet: python build_engines.py --engine auto" in line
    assert line.endswith(str(repository))


def test_the_version_that_is_served_is_checked_and_not_the_newest(repository: Path) -> None:
    """By the configuration that the server will read."""
    (repository / "student/2").mkdir()  # without model.py: for a GPU
    config = repository / "student/configs/cpu.pbtxt"
    before = config.read_text()
    ports = [f"--allow-{name}=false" for name in ("http", "grpc", "metrics")]
    for version, message in ((1, ""), (2, "student/2 was built for a GPU"), (3, "cpu.pbtxt names version 3, which is")):
        config.write_text(f"{before}\nversion_policy {{ specific {{ versions: {version} }} }}\n")
        if not message:
            check([CPU, f"--model-repository={repository}", *ports])
            continue
        with pytest.raises(EmbeddedTritonError, match=message):
            check([CPU, f"--model-repository={repository}", *ports])


@pytest.mark.parametrize(
    "flags", [["--http-address", "0.0.0.0"], ["--grpc-address=::"], ["--metrics-addr", "10.0.0.1"]]
)
def test_other_machines_are_not_served(repository: Path, flags: list[str]) -> None:
    assert "stays on loopback" in refusal(CPU, "--model-repository", str(repository), *flags)


@pytest.mark.parametrize("endpoint", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named(repository: Path, endpoint: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(CPU, f"--model-repository={repository}", *_free_but(endpoint), f"--{endpoint}-port={port}")
    assert f"port {port} of 127.0.0.1 cannot be used (Address already in use)" in line
    assert f"another port with --{endpoint}-port" in line


def _free_but(endpoint: str) -> list[str]:
    """Endpoints that this test is not about are off."""
    return [f"--allow-{name}=false" for name in ("http", "grpc", "metrics") if name != endpoint]


@pytest.mark.parametrize("given", ["", "soon", "-1", "nan", "inf"])
def test_a_time_limit_is_a_time(repository: Path, given: str) -> None:
    line = refusal(CPU, f"--model-repository={repository}", f"--hang-timeout-secs={given}", *_free_but(""))
    assert f"--hang-timeout-secs must be 0 or more seconds, not {given!r}" in line


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ([], "127.0.0.1:8001"),
        (["--grpc-port", "9", "--grpc-address=::1"], "[::1]:9"),
        (["--allow-grpc=false"], ""),
        (["--grpc-use-ssl", "true"], ""),
    ],
)
def test_the_canary_goes_where_it_is_let_in(flags: list[str], where: str) -> None:
    assert asked_at(flags) == where


def test_triton_is_not_given_our_own_flags() -> None:
    assert without(["a", "--hang-timeout-secs", "3", "b", "--hang-timeout-secs=4"], "--hang-timeout-secs") == ["a", "b"]


def test_numpy_2_is_refused(tmp_path: Path) -> None:
    information = tmp_path / "numpy-2.3.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.3.0\n")
    assert "under numpy 2.3.0: pip install 'numpy<2'" in refusal(CPU, PYTHONPATH=str(tmp_path))


def test_an_environment_without_the_wheel_is_refused() -> None:
    command = (sys.executable, "-S", "-m", "embedded_triton")
    assert "pip install 'disranker[server]'" in refusal(CPU, command=command)


def test_a_python_without_its_library_is_refused() -> None:
    elsewhere = (
        "import sys, sysconfig, embedded_triton; sys.base_prefix = sysconfig.get_config_vars()['LIBDIR'] = '/nowhere';"
        "sys.exit(embedded_triton.main(sys.argv[1:]))"
    )
    line = refusal(CPU, command=(sys.executable, "-c", elsewhere))
    assert f"this Python has no libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0" in line


def test_the_tokenizer_gets_some_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = find_wheel()
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32))
    assert environment(wheel)["RAYON_NUM_THREADS"] == "8"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    assert environment(wheel)["RAYON_NUM_THREADS"] == "1"
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    assert environment(wheel)["RAYON_NUM_THREADS"] == "3"


def test_a_real_server_on_the_path_goes_first(tmp_path: Path) -> None:
    real = tmp_path / "tritonserver"
    shutil.copy(str(shutil.which("echo")), real)
    variables = {**os.environ, "PATH": os.pathsep.join([str(COMMAND.parent), str(tmp_path)])}
    flags = [CPU, "--hang-timeout-secs=3", "--verbose", "--http-port=0"]
    result = subprocess.run([COMMAND, *flags], env=variables, capture_output=True, text=True, timeout=180)
    assert result.stdout.split() == [CPU, "--http-port=0"]
    assert f"this is {real}; python -m embedded_triton starts the embedded one" in result.stderr
    ours = (*triton(tmp_path / "none", ports()),)  # as programs start it
    assert "none: no such directory" in refusal(command=ours, PATH=variables["PATH"])


def test_help_is_tritons_own() -> None:
    result = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, timeout=180)
    assert "--model-repository" in result.stdout + result.stderr


def test_ctrl_c_ends_the_server_and_all_of_its_processes(served_repository: Path, tmp_path: Path) -> None:
    """As SIGTERM does, which ends the servers of all tests. Without --verbose little is said."""
    with starting(served_repository, tmp_path / "log", verbose=False) as server:
        wait_until_ready(server)
        eventually(lambda: "metrics  http" in server.log.read_text())  # it is said a moment later
        family = descendants(server.process.pid)
        assert len(family) >= 4  # Triton and a process for each Python model
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(STOP_S) == 0
        wait_until_ended(family)
        assert not _shared_memory(server.process.pid)
        log = server.log.read_text()
        said = [line for line in re.sub(r"after \d+\.\d s", "after a time", log).splitlines() if SAYS.match(line)]
        assert said == SAID.format(**server.ports).splitlines()
        assert log.count("\n") <= len(said) + 3, log  # Triton says that it got a signal


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_while_the_models_load_leaves_nothing_either(
    served_repository: Path, tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    with starting(served_repository, tmp_path / "log") as server:
        while len(family := descendants(server.process.pid)) < processes:
            time.sleep(0.005)
        server.process.send_signal(number)
        assert server.process.wait(STOP_S) in (0, 128 + signal.SIGTERM)
        wait_until_ended(family)
        assert not _shared_memory(server.process.pid)


def _shared_memory(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"tritonserver-{pid}-*"))
