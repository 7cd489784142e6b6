"""Relabelling: teacher scores for every pair of a pool, as Parquet.

    python -m trainer.score --model runs/teacher --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --run llm.run --data log.jsonl --output runs/teacher_scores.parquet

A teacher's scores are written in shards, beside the output until all are there: the same command goes on
after a kill, and under ``torchrun`` each process scores shards of its own. From a run file, which holds
an order and no scores, the score is -log(rank) within its query.
Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from trainer.data import DataError, QueryGroup, join_scores, read_groups, write_scores
from trainer.resume import open_shards
from trainer.scoring import GroupScorer, parts, progress, run_scores
from trainer.stage import command, parse


@dataclass
class ScoreArguments:
    """Whose scores, of which pairs."""

    data: list[str] = field(metadata={"help": "Pool of pairs (JSONL, Parquet)."})
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    run: str | None = field(default=None, metadata={"help": "TREC run file to take the order from instead."})
    rows_per_batch: int = field(default=32, metadata={"help": "Packed rows of one forward, about."})
    pairs_per_shard: int = field(default=100_000, metadata={"help": "Pairs after which scores are safe, about."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments)
    if (arguments.model is None) == (arguments.run is None):
        raise DataError("give either --model (a teacher's checkpoint) or --run (a TREC run file)")
    if min(arguments.rows_per_batch, arguments.pairs_per_shard) < 1:
        raise DataError("--rows_per_batch and --pairs_per_shard must be at least 1")
    groups = [group for path in arguments.data for group in read_groups(path)]
    if arguments.run is not None:
        scores = run_scores(arguments.run, groups)
        pairs = write_scores(arguments.output, scores, teacher=Path(arguments.run).name)
    else:
        pairs = score_in_shards(arguments, groups)
    if PartialState().is_main_process:
        everything = sum(len(group.documents) for group in groups)
        print(f"{arguments.output}: {pairs:,} of {everything:,} pairs of {len(groups):,} queries")


def score_in_shards(arguments: ScoreArguments, groups: Sequence[QueryGroup]) -> int:
    """Score every shard that is not there yet, join them, and return the number of pairs.

    Raises ResumeError for shards of other settings.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    output, model = Path(arguments.output), str(arguments.model)
    directory = output.with_name(f".{output.name}.shards")
    scorer = GroupScorer(model, arguments.rows_per_batch)
    with processes.main_process_first():
        open_shards(directory, {**asdict(arguments), "files": stamps([*arguments.data, *checkpoint_files(model)])})
    shards = [
        (directory / f"{number:06}.parquet", part)
        for number, part in enumerate(parts(groups, arguments.pairs_per_shard))
    ]
    with progress(model, groups, disable=not processes.is_main_process) as bar:
        for number, (path, part) in enumerate(shards):
            if path.exists():
                bar.update(sum(len(group.documents) for group in part))
            elif number % processes.num_processes == processes.process_index:
                write_scores(path, scorer.scores(part, bar), teacher=Path(model).name)
    processes.wait_for_everyone()
    if processes.is_main_process:
        join_scores([path for path, _ in shards], output)
        shutil.rmtree(directory)
    return sum(len(group.documents) for group in groups)


def checkpoint_files(model: str) -> list[str]:
    return sorted(str(path) for path in Path(model).glob("*") if path.is_file())


def stamps(paths: Sequence[str]) -> dict[str, str]:
    """Size and time of files: shards are not to be joined with those of other pairs or of another teacher."""
    return {path: f"{(stat := Path(path).stat()).st_size} bytes of {stat.st_mtime_ns}" for path in paths}


if __name__ == "__main__":
    sys.exit(main())
