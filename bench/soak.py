"""Hours of mixed load on one server, with a fault every few minutes: all that fails is a fault's, and nothing grows.

    python -m bench.soak --model_repository model_repository --minutes 120

Exit code 1 if a request failed that no fault explains, if an answer was wrong, or if the server did not come back.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from bench.chaos import FAULTS, SAME, leftovers, until
from bench.children import READY_S, Child, StartError, healthy, serving
from bench.report import command_of, described, machine, show, write
from bench.serving.processes import family_memory
from bench.soak_results import Request, Sample, Struck, draw, explained, table_of_growth, table_of_requests
from client import Document, RankingClient, RankingError
from client.command import command
from client.connection import BATCH, PERSON
from client.files import check_writable
from trainer.command import FlagError, parse

SIZES = {"small": (5, PERSON), "large": (60, PERSON), "batch": (200, BATCH)}  # documents, priority
WORDS = ("garden", "river", "silver", "market", "winter", "bridge", "orchard", "lantern", "copper", "meadow")
LIMIT_S, SAMPLE_S = 5.0, 5.0


@dataclass
class SoakArguments:
    """The settings of a soak."""

    model_repository: str = field(default="model_repository", metadata={"help": "Served on the processor."})
    minutes: float = field(default=120.0, metadata={"help": "How long."})
    fault_every_s: float = field(default=240.0, metadata={"help": "Seconds from one fault to the next."})
    pause_s: float = field(default=0.1, metadata={"help": "Seconds from an answer to its caller's next request."})
    seed: int = field(default=0, metadata={"help": "Of the documents and of the order of the faults."})
    output: str = field(default="soak", metadata={"help": "OUTPUT.json for all numbers, OUTPUT.png for the picture."})

    def __post_init__(self) -> None:
        for name in ("minutes", "fault_every_s", "pause_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise FlagError(f"--{name} {getattr(self, name):g}: above 0 is needed")


class Caller(threading.Thread):
    """Asks for the scores of the same documents, ``pause_s`` between, until ``ended``."""

    def __init__(self, url: str, kind: str, seed: int, pause_s: float, ended: threading.Event) -> None:
        super().__init__(name=kind, daemon=True)
        self._url, self._kind, self._pause_s, self._ended = url, kind, pause_s, ended
        count, self._priority = SIZES[kind]
        draw = random.Random(f"{kind}-{seed}")
        texts = (" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in range(count))
        self._documents = [Document(title=text) for text in texts]
        self.requests, self.wrong = list[Request](), 0

    def run(self) -> None:
        with RankingClient(self._url, timeout_s=LIMIT_S, attempts=1, priority=self._priority) as client:
            known: list[float] = []
            while not self._ended.wait(self._pause_s):
                sent, error = time.monotonic(), ""
                try:
                    scores = client.score("garden bridge", self._documents)
                    known = known or scores
                    self.wrong += not np.allclose(scores, known, rtol=0, atol=SAME)
                except RankingError as failure:
                    error = type(failure).__name__
                self.requests.append(Request(self._kind, sent, time.monotonic() - sent, error))


class Watch(threading.Thread):
    """Samples of a server until ``ended``."""

    def __init__(self, server: Child, ended: threading.Event) -> None:
        super().__init__(name="watch", daemon=True)
        self._server, self._ended, self.samples = psutil.Process(server.process.pid), ended, list[Sample]()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S) and self._server.is_running():
            processes = [self._server, *self._server.children(recursive=True)]
            files = 0
            for process in processes:
                try:
                    files += process.num_fds()
                except psutil.Error:  # it ended meanwhile
                    continue
            shared = sum(path.stat().st_blocks * 512 for path in leftovers(self._server.pid) if path.exists())
            self.samples.append(Sample(time.monotonic(), family_memory(processes), shared, files))


@command
def main(argv: Sequence[str] | None = None) -> int:
    (arguments,) = parse(argv, SoakArguments)
    numbers, drawn = (Path(f"{arguments.output}.{kind}") for kind in ("json", "png"))
    check_writable(numbers, drawn)
    with tempfile.TemporaryDirectory() as folder, serving(arguments.model_repository, Path(folder) / "log") as server:
        begun = time.monotonic()
        callers, watch, struck = soaked(arguments, *server)
    requests = [request for caller in callers for request in caller.requests]
    unexplained = [one for one in requests if one.error and not explained(one, struck)]
    wrong, here = sum(caller.wrong for caller in callers), machine(0)
    write(numbers, {
        "command": command_of("bench.soak", argv), "machine": here, "wrong": wrong,
        "requests": requests, "faults": struck, "samples": watch.samples,
    })  # fmt: skip
    draw(SIZES, requests, struck, watch.samples, begun, drawn, described(here))
    show(table_of_requests(SIZES, requests, struck, described(here)), table_of_growth(watch.samples))
    errors = dict(Counter(one.error for one in unexplained))
    print(f"{len(struck)} faults, {wrong} wrong answers, {len(unexplained)} failures that no fault explains {errors}")
    gone = [one.fault for one in struck if one.healthy_at is None]
    if gone:
        print(f"the server did not come back within {READY_S} s ({gone[0]})")
    return 1 if wrong or unexplained or gone else 0


def soaked(arguments: SoakArguments, child: Child, ports: dict[str, int]) -> tuple[list[Caller], Watch, list[Struck]]:
    """Load, faults and samples for so many minutes, or until the server does not come back."""
    ended, struck = threading.Event(), list[Struck]()
    url = f"127.0.0.1:{ports['grpc']}"
    callers = [Caller(url, kind, arguments.seed, arguments.pause_s, ended) for kind in SIZES]
    watch = Watch(child, ended)
    for thread in (*callers, watch):
        thread.start()
    draw, begun = random.Random(arguments.seed), time.monotonic()
    seconds, due = 60 * arguments.minutes, arguments.fault_every_s
    with tqdm(total=round(seconds), unit="s", desc="soak") as bar:
        while (passed := time.monotonic() - begun) < seconds and None not in (one.healthy_at for one in struck):
            bar.update(round(passed) - bar.n)
            time.sleep(1)
            if passed >= due and seconds - passed > arguments.fault_every_s / 2:  # time to be seen well again
                struck.append(strike(draw.choice([*FAULTS]), child, ports, callers[0]))
                due += arguments.fault_every_s
    ended.set()
    for thread in (*callers, watch):
        thread.join()
    return callers, watch, struck


def strike(fault: str, child: Child, ports: dict[str, int], caller: Caller) -> Struck:
    """Do it, and wait until a caller has an answer again."""
    at = time.monotonic()
    FAULTS[fault](child.process.pid)
    until(lambda: not healthy(ports["http"]) or time.monotonic() - at > LIMIT_S)
    try:
        until(lambda: any(one.sent > at and not one.error for one in caller.requests[-3:]) and healthy(ports["http"]))
    except StartError:
        return Struck(fault, at, None)
    return Struck(fault, at, time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
