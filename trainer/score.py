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
from typing import Literal, NamedTuple

import torch
from accelerate import PartialState
from tqdm import tqdm

from trainer.data import DataError, iter_groups, read_groups
from trainer.memory import naming_flags
from trainer.rankings import join_scores, write_scores
from trainer.resume import open_shards, stamps
from trainer.scoring import GroupScorer, parts, progress, run_scores
from trainer.stage import command, parse

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LESS_MEMORY = "a smaller --rows_per_batch, --precision bf16"


@dataclass
class ScoreArguments:
    """Whose scores, of which pairs."""

    data: list[str] = field(metadata={"help": "Pool of pairs: JSONL, Parquet, or ir_datasets:ID."})
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    run: str | None = field(default=None, metadata={"help": "TREC run file to take the order from instead."})
    rows_per_batch: int = field(default=32, metadata={"help": "Packed rows of one forward, about."})
    precision: Literal["fp32", "bf16", "fp16"] = field(
        default="fp32", metadata={"help": "Of the teacher's layers; its score head computes in fp32."}
    )
    pairs_per_shard: int = field(default=100_000, metadata={"help": "Pairs after which scores are safe, about."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments)
    if (arguments.model is None) == (arguments.run is None):
        raise DataError("give either --model (a teacher's checkpoint) or --run (a TREC run file)")
    if min(arguments.rows_per_batch, arguments.pairs_per_shard) < 1:
        raise DataError("--rows_per_batch and --pairs_per_shard must be at least 1")
    if arguments.run is not None:
        groups = read_groups(*arguments.data)
        scores = run_scores(arguments.run, groups)
        size = Size(len(groups), sum(len(group.documents) for group in groups))
        pairs = write_scores(arguments.output, scores, teacher=Path(arguments.run).name)
    else:
        size = survey(arguments.data)
        pairs = score_in_shards(arguments, size)
    if PartialState().is_main_process:
        print(f"{arguments.output}: {pairs:,} of {size.pairs:,} pairs of {size.queries:,} queries")


class Size(NamedTuple):
    """Of a pool."""

    queries: int
    pairs: int


def survey(sources: Sequence[str]) -> Size:
    """Read everything once: what is wrong with it shows before the teacher's hours are spent."""
    queries = pairs = 0
    for group in tqdm(iter_groups(*sources), desc="reading", unit="query", delay=5):
        queries, pairs = queries + 1, pairs + len(group.documents)
    return Size(queries, pairs)


def score_in_shards(arguments: ScoreArguments, size: Size) -> int:
    """Score every shard that is not there yet, join them, and return the number of pairs.

    Raises ResumeError for shards of other settings.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    output, model = Path(arguments.output), str(arguments.model)
    directory = output.with_name(f".{output.name}.shards")
    scorer = GroupScorer(model, arguments.rows_per_batch, PRECISIONS[arguments.precision])
    with processes.main_process_first():
        open_shards(directory, {**asdict(arguments), "files": stamps([*arguments.data, model])})
    shards = []
    with progress(model, size.pairs, disable=not processes.is_main_process) as bar, naming_flags(LESS_MEMORY):
        for number, part in enumerate(parts(iter_groups(*arguments.data), arguments.pairs_per_shard)):
            shards.append(path := directory / f"{number:06}.parquet")
            if path.exists():
                bar.update(sum(len(group.documents) for group in part))
            elif number % processes.num_processes == processes.process_index:
                write_scores(path, scorer.scores(part, bar), teacher=Path(model).name)
    processes.wait_for_everyone()
    if processes.is_main_process:
        join_scores(shards, output)
        shutil.rmtree(directory)
    return size.pairs


if __name__ == "__main__":
    sys.exit(main())
