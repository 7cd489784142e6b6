"""Do to a real server what kernels and people do to processes, and measure how long its callers feel it.

    python -m bench.chaos --model_repository model_repository

Each fault meets a server of its own that a caller asks in a loop.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.table import Table

from bench.children import READY_S, Child, StartError, healthy, serving
from bench.report import show, table_of
from client import RankingClient, RankingError
from client.command import command

PAUSE_S = 0.02  # between requests, and between looks
LIMIT_S = 5.0  # of a request
STEADY = 20  # requests before a fault, and after it
DOCUMENTS = ["garden bridge", "river market", "winter"]
SAME = 1e-4  # logits: a library chooses its kernels by what shares the call


def family(command: int, *names: str) -> list[psutil.Process]:
    """Processes below the command: ``tritonserver`` is Triton itself, ``student_0_0`` the process of that instance."""
    found = []
    for process in psutil.Process(command).children(recursive=True):
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if {Path(arguments[0]).name, *arguments[-2:-1]} & {*names}:
                found.append(process)
    return found


def send(number: signal.Signals, *names: str, then: signal.Signals | None = None) -> Callable[[int], None]:
    """A fault: a signal to these processes, and another one after 2 s."""

    def fault(command: int) -> None:
        struck = family(command, *names)
        for one in filter(None, (number, then)):
            for process in struck:
                with suppress(psutil.NoSuchProcess):  # replaced already
                    process.send_signal(one)
            time.sleep(2 if then else 0)

    return fault


FAULTS: dict[str, Callable[[int], None]] = {
    "student killed": send(signal.SIGKILL, "student_0_0"),
    "a tokenizer and the scores killed": send(signal.SIGKILL, "tokenizer_0_1", "scores_0_0"),
    "student stopped": send(signal.SIGSTOP, "student_0_0"),
    "student stopped for 2 s": send(signal.SIGSTOP, "student_0_0", then=signal.SIGCONT),
    "Triton killed": send(signal.SIGKILL, "tritonserver"),
    "Triton stopped": send(signal.SIGSTOP, "tritonserver"),
}


@dataclass
class Caller(threading.Thread):
    """Asks for the same scores in a loop. ``wrong`` are answers that differ from the first one."""

    url: str
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(name="caller", daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        with RankingClient(self.url, timeout_s=LIMIT_S, attempts=1) as client:
            first = client.score("garden", DOCUMENTS)
            while not self.ended.wait(PAUSE_S):
                try:
                    scores = client.score("garden", DOCUMENTS)
                except RankingError:
                    self.failed += 1
                    continue
                self.answered += 1
                self.wrong += any(abs(one - two) > SAME for one, two in zip(first, scores, strict=True))

    def wait_for(self, answers: int) -> None:
        """Wait until so many more are there."""
        wanted = self.answered + answers
        until(lambda: self.answered >= wanted)


@dataclass(frozen=True)
class Felt:
    """A fault: seconds until the server was not ready, and until it answered again."""

    fault: str
    unready_s: float
    healthy_s: float
    failed: int
    requests: int
    wrong: int


def until(holds: Callable[[], bool]) -> float:
    """Wait until it does, for so many seconds. Raises StartError after READY_S."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > READY_S:
            raise StartError(f"the server did not come back within {READY_S} s")
        time.sleep(PAUSE_S)
    return time.monotonic() - start


def strike(fault: str, child: Child, ports: dict[str, int]) -> Felt:
    """Do it to a server that is ready, and wait until it answers again."""
    caller = Caller(f"127.0.0.1:{ports['grpc']}")
    caller.start()
    caller.wait_for(STEADY)
    injected = threading.Thread(target=FAULTS[fault], args=(child.process.pid,))
    start = time.monotonic()
    injected.start()
    unready_s = until(lambda: not healthy(ports["http"]))
    until(lambda: healthy(ports["http"]))
    caller.wait_for(1)
    healthy_s = time.monotonic() - start
    caller.wait_for(STEADY)
    caller.ended.set()
    for thread in (injected, caller):
        thread.join()
    return Felt(fault, unready_s, healthy_s, caller.failed, caller.failed + caller.answered, caller.wrong)


def struck(fault: str, repository: str, log: Path) -> Felt:
    with serving(repository, log) as (child, ports):
        return strike(fault, child, ports)


def report(felt: Sequence[Felt]) -> Table:
    headings = ["fault", "s until not ready", "s until it answers", "requests failed", "of", "wrong answers"]
    table = table_of("Faults of the embedded server, one caller in a loop", headings, headings[:1])
    for one in felt:
        figures = (one.fault, f"{one.unready_s:.2f}", f"{one.healthy_s:.1f}", one.failed, one.requests, one.wrong)
        table.add_row(*map(str, figures))
    return table


def abandon(child: Child) -> float:
    """Kill the command itself; seconds until nothing of it is left, no process and no shared memory."""
    pid = child.process.pid
    below = psutil.Process(pid).children(recursive=True)
    child.process.kill()
    child.process.wait()
    return until(lambda: not any(map(runs, below)) and not leftovers(pid))


def runs(process: psutil.Process) -> bool:
    """A zombie that init has not yet reaped has ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def leftovers(pid: int) -> list[Path]:
    """The names that a command of this process id has in shared memory."""
    return [*Path("/dev/shm").glob(f"tritonserver-{pid}-*")]


@command
def main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_repository", default="model_repository", help="default %(default)s")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        _run(arguments.model_repository, Path(folder) / "log")
    return 0


def _run(repository: str, log: Path) -> None:
    felt = [struck(fault, repository, log) for fault in FAULTS]
    with serving(repository, log) as (child, _):
        gone_s = abandon(child)
    show(report(felt))
    print(f"The command killed: nothing of it was left after {gone_s:.1f} s.")


if __name__ == "__main__":
    sys.exit(main())
