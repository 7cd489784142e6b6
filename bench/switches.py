"""Change the version of a running server and change it back, again and again, under an open-loop load.

    python -m bench.switches --model_repository model_repository --versions 1 2 --switches 10 --rate 20

Two versions of one repository are needed, whose scores differ. Each answer must be one version's, whole. Exit code 1 if
a request failed, if a list was mixed, if the model was not ready, or if a request was answered by the old version
although it was sent when the new one was said to answer.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.children import healthy, serving
from client import Connection, Document, RankingClient, RankingError
from client.command import command
from engines.repository.control import ADMIN_KEY, RunningServer
from engines.repository.models import STUDENT
from engines.repository.place import Place
from engines.versions import use
from model_repository.tokenizer.pair_encoding import FloatArray

QUERY, AT_ONCE = "garden bridge", 64
DOCUMENTS = [Document(title=f"number {number}", summary="river silver market " * number) for number in range(10)]
FAILED, MIXED = "failed", "mixed"
# Far above what differs with the shape of a call, logits.
TOLERANCE = 1e-3
EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")


class Asked(NamedTuple):
    """A request: when it was due, its seconds from then, and the version that answered, or FAILED, or MIXED."""

    due: float
    seconds: float
    outcome: str


class Phase(NamedTuple):
    """A time of the load; ``version`` is the one that answers in the end, ``switching`` whether it came within."""

    version: int
    switching: bool
    start: float
    stop: float


@dataclass(frozen=True)
class Report:
    """The requests of all phases, and how often the model was found not ready."""

    phases: list[Phase]
    asked: list[Asked]
    not_ready: int

    def count(self, outcome: str) -> int:
        return sum(each.outcome == outcome for each in self.asked)

    def late(self) -> int:
        """Requests that were sent in a phase without a switch, and answered by the other version."""
        phases = [phase for phase in self.phases if not phase.switching]
        return sum(each.outcome != str(phase.version) for phase in phases for each in self._in(phase))

    def milliseconds(self, switching: bool) -> FloatArray:
        phases = [phase for phase in self.phases if phase.switching == switching]
        return np.array([1e3 * each.seconds for phase in phases for each in self._in(phase)], np.float32)

    def good(self) -> bool:
        return not (self.count(FAILED) or self.count(MIXED) or self.not_ready or self.late())

    def lines(self) -> Iterator[str]:
        yield f"{'':12} {'times':>6} {'requests':>9} {'p50 ms':>8} {'p99 ms':>8}"
        for name, switching in (("steady", False), ("switching", True)):
            took, times = self.milliseconds(switching), sum(phase.switching == switching for phase in self.phases)
            yield f"{name:12} {times:6} {len(took):9,} {np.median(took):8.1f} {np.percentile(took, 99):8.1f}"
        yield (
            f"{self.count(FAILED)} failed, {self.count(MIXED)} mixed, {self.late()} by the old version after the "
            f"switch, {self.not_ready} times not ready"
        )

    def _in(self, phase: Phase) -> Iterator[Asked]:
        return (each for each in self.asked if phase.start <= each.due < phase.stop)


class Load:
    """Requests at fixed times, whatever the answers."""

    def __init__(self, address: str, http_port: int, rate: float) -> None:
        self._client, self._port, self._rate = RankingClient(address, attempts=1), http_port, rate
        self._ends, self.asked, self.not_ready = threading.Event(), list[Asked](), 0
        self.known = dict[int, FloatArray]()

    def scores(self) -> FloatArray:
        return np.array(self._client.score(QUERY, DOCUMENTS), np.float32)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Requests are sent within; at the end all of them are answered."""
        with ThreadPoolExecutor(AT_ONCE) as pool, ThreadPoolExecutor(2) as clocks:
            jobs = [clocks.submit(self._send, pool), clocks.submit(self._look)]
            try:
                yield
            finally:
                self._ends.set()
            for job in jobs:
                job.result()

    def _send(self, pool: ThreadPoolExecutor) -> None:
        due = time.monotonic()
        while not self._ends.wait(max(0.0, due - time.monotonic())):
            pool.submit(self._ask, due)
            due += 1 / self._rate

    def _ask(self, due: float) -> None:
        try:
            outcome = self._version_of(self.scores())
        except RankingError:
            outcome = FAILED
        self.asked.append(Asked(due, time.monotonic() - due, outcome))

    def _version_of(self, scores: FloatArray) -> str:
        fits = [version for version, known in self.known.items() if np.abs(known - scores).max() < TOLERANCE]
        return str(fits[0]) if fits else MIXED

    def _look(self) -> None:
        while not self._ends.wait(0.1):
            # Not the server's own readiness, which Triton denies while any version is loaded or unloaded.
            self.not_ready += not healthy(self._port, "/v2/models/ranker/ready")


def switch(repository: Path, versions: Sequence[int], switches: int, rate: float, steady_s: float, log: Path) -> Report:
    """Serve the repository and change from the first of two versions to the second and back, ``switches`` times."""
    place = Place.of(repository, STUDENT)
    use(place, versions[0])
    with serving(repository, log, *EXPLICIT) as (_, ports):
        address = f"127.0.0.1:{ports['grpc']}"
        load, phases = Load(address, ports["http"], rate), list[Phase]()
        with RunningServer(Connection((address,), timeout_s=600), place) as server:
            for version in reversed(versions):
                use(place, version, server=server)
                load.known[version] = load.scores()
            with load.running():
                for version in [versions[0], *[*reversed(versions)] * switches]:
                    begun = time.monotonic()
                    if len(phases):
                        use(place, version, server=server)
                    phases.append(Phase(version, bool(phases), begun, time.monotonic()))
                    time.sleep(steady_s)
                    phases.append(Phase(version, False, phases[-1].stop, time.monotonic()))
    return Report(phases[1:], load.asked, load.not_ready)


@command
def main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.switches", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--versions", type=int, nargs=2, default=[1, 2])
    parser.add_argument("--switches", type=int, default=10, help="each with its way back")
    parser.add_argument("--rate", type=float, default=20.0, help="requests of 10 documents a second")
    parser.add_argument("--steady_s", type=float, default=4.0, help="seconds between two of them")
    given = parser.parse_args(argv)
    os.environ.setdefault(ADMIN_KEY, os.urandom(16).hex())
    with tempfile.TemporaryDirectory(prefix="switches-") as folder:
        log = Path(folder) / "log"
        report = switch(given.model_repository, given.versions, given.switches, given.rate, given.steady_s, log)
    print(*report.lines(), sep="\n")
    return 0 if report.good() else 1


if __name__ == "__main__":
    sys.exit(main())
