"""A worker's job and its outcome. Standard library only, since every environment reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Group:
    """A query's documents, each one text, and a target (a teacher's score, a grade, a weight) for each."""

    query: str
    documents: tuple[str, ...]
    targets: tuple[float, ...]


@dataclass(frozen=True)
class Shape:
    """The division of a step into forward passes."""

    per_forward: int  # queries, or rows of their own dataset for trl's trainers
    per_step: int
    option: str = ""  # a setting of the system itself

    def __str__(self) -> str:
        return f"{self.per_forward} of {self.per_step}" + (f", {self.option}" if self.option else "")


@dataclass(frozen=True)
class Job:
    """Train ``checkpoint`` for ``warm_up`` and ``steps`` steps on ``groups`` in their order. Only ``steps`` count."""

    checkpoint: str
    groups: tuple[Group, ...]
    shape: Shape
    steps: int
    precision: str = "fp32"  # or bf16: autocast, weights stay float32
    warm_up: int = 1
    learning_rate: float = 5e-5
    speed_counts: bool = True  # else only the losses are wanted, and the steps may go over the data again


@dataclass(frozen=True)
class Outcome:
    """The figures of the steps that count. ``losses`` has those of the warm-up too."""

    step_seconds: list[float]
    pairs: float  # query-document pairs that went through the model
    comparisons: int  # pairs of documents that the loss compared; 0 where that is the same for all systems
    losses: list[float]
    peak_bytes: int  # of the process's resident memory, over its whole life
    versions: dict[str, str]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds
