"""A real server whose processes are killed, stopped or hang: it comes back by itself, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench import chaos
from bench.chaos import family, leftovers, strike
from client import RankingClient, RankingError
from tests.support.servers import STOP_S, Server, descendants, running, starting, wait_until_ready
from tests.support.waiting import eventually

AGAIN = re.compile(r"^tritonserver: (.*); Triton is started again in (\S+) s \(restart (\d+)\)$", re.MULTILINE)
ENDLESS = """

import time

_execute = TritonPythonModel.execute

def execute(self, requests):
    while Path(__file__).with_name("hang").exists():
        time.sleep(0.1)
    time.sleep(0.1)  # much work, which costs the tests little
    return _execute(self, requests)

TritonPythonModel.execute = execute
"""
MODEL = 'name: "{name}" backend: "python" max_batch_size: 0 instance_group [ {{ kind: KIND_CPU }} ]'
KILLS_TRITON = "import os\nos.kill(os.getppid(), 9)\nwhile True: pass\n"
RAISES = "raise ValueError('no weights')\n"


def restarts(server: Server) -> list[str]:
    """Why Triton was started again, each time."""
    return [why for why, _, _ in AGAIN.findall(server.log.read_text())]


def triton(server: Server) -> psutil.Process:
    (process,) = family(server.process.pid, "tritonserver")
    return process


@pytest.fixture(scope="module")
def struck(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(served_repository, tmp_path_factory.mktemp("struck") / "log") as server:
        yield server


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("student killed", "the process student_0_0 was killed by SIGKILL"),
        ("a tokenizer and the scores killed", "was killed by SIGKILL"),
        ("student stopped for 2 s", "the process student_0_0 was stopped"),
        ("Triton killed", "SIGKILL ended Triton"),
    ],
)
def test_what_died_is_replaced_and_no_answer_is_wrong(struck: Server, fault: str, reason: str) -> None:
    before = restarts(struck)
    felt = strike(fault, struck, struck.ports)
    assert felt.failed and not felt.wrong
    *old, why = restarts(struck)
    assert old == before and reason in why
    assert triton(struck).environ()["DISRANKER_RESTARTS"] == str(len(before) + 1)


def test_what_requests_are_made_of_is_for_nobody_else_to_read(struck: Server) -> None:
    found = leftovers(struck.process.pid)
    assert len(found) >= 1 + 4  # a lock, and a region for each process
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_a_server_that_hangs_is_replaced_and_one_that_is_full_is_not(served_repository: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(served_repository, tmp_path / "model_repository"))
    student = repository / "student/1"
    with (student / "model.py").open("a") as model:
        model.write(ENDLESS)
    with running(repository, tmp_path / "log", "--hang-timeout-secs=6") as server:
        first = triton(server)
        with RankingClient(server.url, attempts=1) as client:
            overload(client, 8)
            assert triton(server) == first
            (student / "hang").touch()
            eventually(lambda: not first.is_running())
            (student / "hang").unlink()
            eventually(client.is_ready)
            client.score("garden", ["river"])
        assert restarts(server) == ["ranker has answered nobody for 6 s"]


def overload(client: RankingClient, seconds: float) -> None:
    """Many callers at a time, for longer than the canary waits."""
    ends = time.monotonic() + seconds

    def call(seed: int) -> None:
        while time.monotonic() < ends:
            with suppress(RankingError):
                client.rank("garden", [f"river {seed} {number}" for number in range(40)], timeout_s=60)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(32)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


def test_a_command_that_is_killed_leaves_nothing_and_the_next_one_clears_up_after_its_guardian(
    served_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chaos, "FAULTS", {})  # they are tests of their own
    assert chaos.main(["--model_repository", str(served_repository)]) == 0
    assert "nothing of it was left after" in capsys.readouterr().out
    with starting(served_repository, tmp_path / "second") as server:
        wait_until_ready(server)
        left = descendants(server.process.pid)
        (guardian,) = (process for process in left if process.exe() == psutil.Process(server.process.pid).exe())
        guardian.kill()
        server.process.kill()
        server.process.wait()
        time.sleep(0.5)  # nobody clears up now
        assert leftovers(server.process.pid)
    with starting(served_repository, tmp_path / "third") as following:
        eventually(lambda: not leftovers(server.process.pid))
        wait_until_ready(following)
        for process in family(following.process.pid, "student_0_0"):
            process.send_signal(signal.SIGSTOP)
        following.process.terminate()
        assert following.process.wait(STOP_S) == 0, "a server with a process that cannot end"
        assert not leftovers(following.process.pid)


def test_chaos_needs_a_repository_that_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chaos.main(["--model_repository", str(tmp_path / "none")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "none: no such directory" in line


def repository_of(folder: Path, code: str) -> Path:
    model = folder / "model_repository/broken"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(MODEL.format(name="broken"))
    (model / "1/model.py").write_text(code)
    return model.parent


def test_a_triton_that_dies_at_every_start_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    with starting(repository_of(tmp_path, KILLS_TRITON), tmp_path / "log") as server:
        assert server.process.wait(STOP_S * 3) == 1
        log = server.log.read_text()
        assert [pause for _, pause, _ in AGAIN.findall(log)] == ["0", "1", "2", "4"]
        line = log.splitlines()[-1]
        assert line.startswith("error: Triton died at 5 starts in a row, at last because SIGKILL ended Triton: ")
        assert "TRITONBACKEND_ModelInstanceInitialize: broken_0_0" in line
        assert not leftovers(server.process.pid)


def test_a_first_start_that_fails_is_not_repeated(tmp_path: Path) -> None:
    """The reason is shown without --verbose, too."""
    with starting(repository_of(tmp_path, RAISES), tmp_path / "log", verbose=False) as server:
        assert server.process.wait(STOP_S * 3) == 1
        log = server.log.read_text()
        assert not restarts(server) and "no weights" in log
        assert log.startswith(f"loading  {tmp_path / 'model_repository'}\n") and "loading: broken:1" not in log


def test_a_process_that_dies_while_its_model_is_loaded_is_tritons_own_business(tmp_path: Path) -> None:
    """The old version of a model goes on being served if its new one cannot be loaded."""
    good = "class TritonPythonModel:\n    def execute(self, requests): return []\n"
    repository = repository_of(tmp_path, good)
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with running(repository, tmp_path / "log", *flags) as server:
        first = triton(server)
        version = repository / "broken/2"
        (tmp_path / "new").mkdir()
        (tmp_path / "new/model.py").write_text("import os, time\ntime.sleep(1)\nos.kill(os.getpid(), 9)\n")
        (tmp_path / "new").rename(version)
        eventually(lambda: "failed to load 'broken' version 2" in server.log.read_text())
        assert triton(server) == first and not restarts(server)
