"""Relabelling: teacher scores for every pair of a pool, as Parquet.

    python -m trainer.score --model runs/teacher --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --run llm.run --data log.jsonl --output runs/teacher_scores.parquet

From a run file, which holds an order and no scores, the score is -log(rank) within its query.
Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data import DataError, read_groups, write_scores
from trainer.scoring import model_scores, run_scores
from trainer.stage import command, parse


@dataclass
class ScoreArguments:
    """Whose scores, of which pairs."""

    data: list[str] = field(metadata={"help": "Pool of pairs (JSONL, Parquet)."})
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    run: str | None = field(default=None, metadata={"help": "TREC run file to take the order from instead."})
    rows_per_batch: int = field(default=32, metadata={"help": "Packed rows of one forward, about."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments)
    if (arguments.model is None) == (arguments.run is None):
        raise DataError("give either --model (a teacher's checkpoint) or --run (a TREC run file)")
    groups = [group for path in arguments.data for group in read_groups(path)]
    if arguments.run is not None:
        scores = run_scores(arguments.run, groups)
    else:
        scores = model_scores(arguments.model, groups, arguments.rows_per_batch)
    pairs = write_scores(arguments.output, scores, teacher=Path(arguments.model or arguments.run).name)
    everything = sum(len(group.documents) for group in groups)
    print(f"{arguments.output}: {pairs:,} of {everything:,} pairs of {len(groups):,} queries")


if __name__ == "__main__":
    sys.exit(main())
