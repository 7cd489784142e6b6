"""What a worker is told and what it answers, as lines of JSON: standard library only, every environment has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Option = dict[str, Any]  # settings of a system that the bench tries: batch_size, together
Pair = tuple[str, tuple[str, ...]]  # a query with its documents, each one text


@dataclass(frozen=True)
class Cell:
    """Requests of one shape.

    Closed loop: ``concurrency`` callers, each with its next request once the last is answered, for ``seconds`` and at
    least ``least`` requests. Open loop: requests arrive ``rate`` times a second at random, whoever is still waiting.
    ``repeated`` is the share of documents that were sent before; all others have never been seen.
    """

    documents: int
    concurrency: int
    seconds: float
    repeated: float = 0.0
    rate: float = 0.0
    least: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.documents, self.concurrency

    def __str__(self) -> str:
        shape = f"{self.documents:,} documents, concurrency {self.concurrency}"
        return shape + (f", {self.repeated:.0%} repeated" if self.repeated else "")


@dataclass(frozen=True)
class Sample:
    """What a worker measured in one cell: answered documents a second and the milliseconds of each request."""

    documents_per_second: float
    documents: int
    milliseconds: list[float] = field(default_factory=list)
