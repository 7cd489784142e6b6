"""What our client adds to a request: its own code's share of the time, and against tritonclient alone.

    python -m bench.client --url localhost:8001

Rounds of our client and of tritonclient with inputs prepared beforehand, with threads and with asyncio, take turns on
one server. In rounds of their own, whose latency does not count, our client's functions are timed one by one. The goal:
our code takes less than 5% of a request of 100 documents, 8 at a time.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from bench.client import callers
from bench.client.callers import Caller, Load, Round
from bench.client.sections import ASYNCIO, OURS, THREADS, Seconds, measured
from bench.machine import described, machine, show
from bench.spread import Spread, ratios, times
from client import Document, RankingRequest
from client.command import command

GOAL = 0.05
# In nearly every vocabulary, so that a document has about as many tokens as words.
WORDS = (
    "river", "bridge", "engine", "market", "garden", "window", "planet", "silver", "copper", "forest", "winter",
    "summer", "doctor", "teacher", "lesson", "recipe", "bread", "cheese", "apple", "tunnel", "harbor", "captain",
    "letter", "number", "paper", "music", "guitar", "theatre", "cinema", "camera",
)  # fmt: skip
TITLE_WORDS, SUMMARY_WORDS = 8, 60


class Kind(NamedTuple):
    """A way to run several requests at a time."""

    name: str
    ours: Caller
    raw: Caller
    functions: tuple[tuple[str, str, object, str], ...]


KINDS = (
    Kind("threads", callers.ours_threads, callers.raw_threads, THREADS),
    Kind("asyncio", callers.ours_asyncio, callers.raw_asyncio, ASYNCIO),
)


class Findings(NamedTuple):
    """Of one kind, round by round; ``seconds`` are of one request."""

    ours: list[Round]
    raw: list[Round]
    seconds: list[Seconds]

    def own(self) -> list[float]:
        """Processor seconds of our own code for a request."""
        return [sum(value for (whose, _), value in one.items() if whose == OURS) for one in self.seconds]

    def shares(self) -> list[float]:
        """Of our own code in a request, by the latency of the same round without timing."""
        return [spent / round.latency for spent, round in zip(self.own(), self.ours, strict=True)]


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    load = Load(
        arguments.url,
        arguments.model,
        requests_of(arguments.requests, arguments.documents),
        arguments.concurrency,
    )
    findings = {kind: _measure(kind, load, arguments.rounds) for kind in KINDS}
    print(
        f"{described(machine(1))}; {len(load.requests)} requests of {arguments.documents} documents a round, "
        f"{load.concurrency} at a time, {arguments.rounds} rounds: median [lowest, highest]"
    )
    show(_against(findings))
    show(_sections(findings))
    worst = max(Spread.of(one.shares()).median for one in findings.values())
    longest = max(Spread.of(one.own()).median for one in findings.values()) * 1e3
    verdict = "reached" if worst < GOAL else "missed"
    print(
        f"goal of {GOAL:.0%} {verdict}: our code takes {longest:.2f} ms, {worst:.2%} of a request; it would be "
        f"{GOAL:.0%} of one of {longest / GOAL:.0f} ms"
    )
    return 0 if worst < GOAL else 1


def requests_of(requests: int, documents: int) -> list[RankingRequest]:
    """Of documents with titles of 8 and summaries of 60 words, always the same."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    pool = [
        Document(doc_id=f"d{number}", title=text(TITLE_WORDS), summary=text(SUMMARY_WORDS))
        for number in range(10 * documents)
    ]
    return [RankingRequest(text(3), draw.sample(pool, documents)) for _ in range(requests)]


def _measure(kind: Kind, load: Load, rounds: int) -> Findings:
    findings = Findings([], [], [])
    kind.ours(load)  # the server's caches
    for number in range(rounds):
        turns = [(kind.ours, findings.ours), (kind.raw, findings.raw)]
        for caller, found in turns if number % 2 else reversed(turns):
            found.append(caller(load))
        with measured(kind.functions) as seconds:
            kind.ours(load)
        findings.seconds.append({what: value / len(load.requests) for what, value in seconds.items()})
    return findings


def _against(findings: dict[Kind, Findings]) -> Table:
    table = Table(title="a request, and tritonclient alone with inputs that were prepared beforehand")
    columns = ("", "latency ms", "alone ms", "ratio", "processor ms", "alone ms", "more ms")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for kind, found in findings.items():
        latency, alone = ([one.latency * 1e3 for one in rounds] for rounds in (found.ours, found.raw))
        processor, processor_alone = ([one.processor * 1e3 for one in rounds] for rounds in (found.ours, found.raw))
        more = [one - other for one, other in zip(processor, processor_alone, strict=True)]
        table.add_row(
            kind.name,
            str(Spread.of(latency)),
            str(Spread.of(alone)),
            times(ratios(latency, alone)),
            _milliseconds(processor),
            _milliseconds(processor_alone),
            _milliseconds(more),
        )
    return table


def _sections(findings: dict[Kind, Findings]) -> Table:
    table = Table(title="processor time of a request in our client, ms, and its share of the latency")
    for column in ("whose", "what", *(f"{kind.name}{unit}" for kind in findings for unit in ("", " share"))):
        table.add_column(column, justify="left" if column.startswith("wh") else "right")
    rows = dict.fromkeys(row for found in findings.values() for row in found.seconds[0])
    for whose, what in sorted(rows):
        cells = []
        for found in findings.values():
            spent = [one.get((whose, what), 0.0) for one in found.seconds]
            shares = [value / round.latency for value, round in zip(spent, found.ours, strict=True)]
            known = (whose, what) in found.seconds[0]
            cells += [_milliseconds([value * 1e3 for value in spent]), _percent(shares)] if known else ["", ""]
        table.add_row(whose, what, *cells)
    table.add_section()
    cells = []
    for found in findings.values():
        cells += [_milliseconds([value * 1e3 for value in found.own()]), _percent(found.shares())]
    table.add_row(OURS, "all", *cells)
    return table


def _milliseconds(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.3f} [{spread.low:.3f}, {spread.high:.3f}]"


def _percent(shares: Sequence[float]) -> str:
    spread = Spread.of(shares)
    return f"{spread.median:.2%} [{spread.low:.2%}, {spread.high:.2%}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.client",
        description=__doc__,
        epilog="exit code: 0 the goal is reached, 1 it is missed, 2 the server does not answer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="localhost:8001", help="of the server's gRPC (default %(default)s)")
    parser.add_argument("--model", default="ranker", help="default %(default)s")
    parser.add_argument("--documents", type=int, default=100, help="of a request (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time (default %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
