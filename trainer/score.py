"""Relabelling: teacher scores for every pair of a pool, as Parquet.

    python -m trainer.score --model runs/teacher --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --triton a:8001 b:8001 --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --run llm.run --data log.jsonl --output runs/teacher_scores.parquet

A teacher's scores are written in shards, which lie beside the output until all of them are there. After a kill the
same command resumes with the first missing shard. Under ``torchrun`` each process scores shards of its own. A teacher
that Triton serves (``build_engines.py --teacher``) scores on all of its servers at once. A run file holds an order and
no scores: the score is -log(rank) within its query.
Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import PartialState
from tqdm import tqdm

from trainer.command import command, parse
from trainer.data.rankings import join_scores, write_scores
from trainer.data.records import DataError, iter_groups, read_groups
from trainer.scoring.checkpoint import GroupScorer, parts, progress, run_scores
from trainer.scoring.prefetch import prefetched
from trainer.scoring.servers import TritonScorer
from trainer.training.memory import naming_flags
from trainer.training.resume import held, open_shards, stamps

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FREE = {"in_flight", "rows_per_batch", "timeout_s", "triton", "triton_model"}  # may differ when a job resumes
LESS_MEMORY = "a smaller --rows_per_batch, --precision bf16"


@dataclass
class ScoreArguments:
    """The teacher, the pairs and the output."""

    data: list[str] = field(metadata={"help": "Pool of pairs: JSONL, Parquet, or ir_datasets:ID."})
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    run: str | None = field(default=None, metadata={"help": "TREC run file whose order replaces a teacher's scores."})
    triton: list[str] | None = field(
        default=None, metadata={"help": "HOST:PORT (gRPC) of each server that serves the teacher."}
    )
    triton_model: str = field(default="teacher_ranker", metadata={"help": "Ensemble that the servers rank with."})
    in_flight: int = field(default=32, metadata={"help": "Queries under way for each server."})
    timeout_s: float = field(
        default=600.0, metadata={"help": "Seconds that a query may take, a restart of its server included."}
    )
    rows_per_batch: int = field(default=32, metadata={"help": "Packed rows of one forward pass, at most."})
    precision: Literal["fp32", "bf16", "fp16"] = field(
        default="fp32", metadata={"help": "Precision of the teacher's layers; its score head computes in fp32."}
    )
    pairs_per_shard: int = field(
        default=100_000, metadata={"help": "Pairs of a shard, about; a finished shard is never scored again."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments)
    if sum(source is not None for source in (arguments.model, arguments.triton, arguments.run)) != 1:
        raise DataError("give either --model (a teacher's checkpoint), --triton (its servers) or --run (a TREC run)")
    if min(arguments.rows_per_batch, arguments.pairs_per_shard, arguments.in_flight) < 1 or arguments.timeout_s <= 0:
        raise DataError("--rows_per_batch, --pairs_per_shard and --in_flight must be at least 1, --timeout_s above 0")
    if arguments.run is not None:
        groups = read_groups(*arguments.data)
        scores = run_scores(arguments.run, groups)
        size = Size(len(groups), sum(len(group.documents) for group in groups))
        pairs = write_scores(arguments.output, scores, teacher=Path(arguments.run).name)
    else:
        size = survey(arguments.data)
        with scorer_of(arguments) as scorer:
            pairs = score_in_shards(arguments, scorer, size)
    if PartialState().is_main_process:
        print(f"{arguments.output}: {pairs:,} of {size.pairs:,} pairs of {size.queries:,} queries")


class Size(NamedTuple):
    """How large a pool is."""

    queries: int
    pairs: int


def survey(sources: Sequence[str]) -> Size:
    """Read everything once, to find faults before the teacher's hours are spent."""
    queries = pairs = 0
    for group in tqdm(iter_groups(*sources), desc="reading", unit="query", delay=5):
        queries, pairs = queries + 1, pairs + len(group.documents)
    return Size(queries, pairs)


@contextmanager
def scorer_of(arguments: ScoreArguments) -> Iterator[GroupScorer | TritonScorer]:
    """The teacher, loaded here or behind its servers."""
    if arguments.model is not None:
        yield GroupScorer(arguments.model, arguments.rows_per_batch, PRECISIONS[arguments.precision])
        return
    with closing(
        TritonScorer(arguments.triton or [], arguments.triton_model, arguments.in_flight, arguments.timeout_s)
    ) as scorer:
        yield scorer


def score_in_shards(arguments: ScoreArguments, scorer: GroupScorer | TritonScorer, size: Size) -> int:
    """Score every missing shard, join all of them, and return the number of pairs.

    Raises ResumeError for shards of other settings.
    """
    processes = PartialState(cpu=not torch.accelerator.is_available())
    output = Path(arguments.output)
    directory = output.with_name(f".{output.name}.shards")
    files = stamps([*arguments.data, *([arguments.model] if arguments.model else [])])
    with processes.main_process_first():
        open_shards(directory, {**asdict(arguments), "files": files, "teacher": scorer.identity}, FREE)
    with held(directory) if processes.is_main_process else nullcontext():
        shards = []
        with progress(scorer.name, size.pairs, disable=not processes.is_main_process) as bar, naming_flags(LESS_MEMORY):
            # The next shard is read while this one is scored.
            pool = prefetched(parts(iter_groups(*arguments.data), arguments.pairs_per_shard), ahead=1)
            for number, part in enumerate(pool):
                shards.append(path := directory / f"{number:06}.parquet")
                if path.exists():
                    bar.update(sum(len(group.documents) for group in part))
                elif number % processes.num_processes == processes.process_index:
                    write_scores(path, scorer.scores(part, bar), teacher=scorer.name)
        processes.wait_for_everyone()
        if processes.is_main_process:
            join_scores(shards, output)
            shutil.rmtree(directory)
    return size.pairs


if __name__ == "__main__":
    sys.exit(main())
