"""A worker's questions and answers, as lines of JSON. Standard library only, since every environment reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Option = dict[str, Any]  # settings of a system that the bench tries: batch_size, together
Pair = tuple[str, tuple[str, ...]]  # a query with its documents, each one text


@dataclass(frozen=True)
class Cell:
    """Requests of one shape, in a closed loop or, with ``rate``, in an open one."""

    documents: int
    concurrency: int  # callers of a closed loop, each of whom waits for the answer; connections of an open one
    seconds: float
    repeated: float = 0.0  # share of documents that were sent before; all others have never been seen
    rate: float = 0.0  # requests a second of an open loop, which arrive at random
    least: int = 1  # requests of a closed loop at least

    @property
    def shape(self) -> tuple[int, int]:
        return self.documents, self.concurrency

    def __str__(self) -> str:
        shape = f"{self.documents:,} documents, concurrency {self.concurrency}"
        return shape + (f", {self.repeated:.0%} repeated" if self.repeated else "")


@dataclass(frozen=True)
class Sample:
    """A worker's figures of one cell, with the milliseconds of each request."""

    documents_per_second: float
    documents: int
    milliseconds: list[float] = field(default_factory=list)
