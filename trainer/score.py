"""Relabelling: teacher scores for every pair of a pool, as Parquet.

    python -m trainer.score --model runs/teacher --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --triton a:8001 b:8001 --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --run llm.run --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --bi_encoder MODEL --data pool.jsonl --output runs/weak_scores.parquet

A teacher's scores are written in shards, which lie beside the output until all of them are there. After a kill the
same command resumes with the missing ones. Under ``torchrun`` each process takes the next shard of one list. A teacher
that Triton serves (``build_engines.py --teacher``) scores on all of its servers at once. A run file holds an order and
no scores: the score is -log(rank) within its query. A bi-encoder's is the cosine of its two vectors.
Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import shutil
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from client.files import check_writable
from trainer.command import command, parse
from trainer.data.rankings import join_scores, write_scores
from trainer.data.records import DataError, iter_groups, read_groups
from trainer.scoring.bi_encoder import BiEncoder
from trainer.scoring.checkpoint import (
    LESS_MEMORY,
    GroupScorer,
    PackedScoringArguments,
    processes_together,
    progress,
    run_scores,
)
from trainer.scoring.prefetch import prefetched
from trainer.scoring.servers import TritonScorer
from trainer.scoring.shards import finished, list_missing, taken, wait_for_all
from trainer.training.memory import naming_flags
from trainer.training.resume import held, open_shards, stamps

Scorer = GroupScorer | BiEncoder | TritonScorer

# What may differ when a job resumes.
FREE = {"attention", "in_flight", "pairs_per_shard", "rows_per_batch", "timeout_s", "triton", "triton_model"}


@dataclass(kw_only=True)
class ScoreArguments(PackedScoringArguments):
    """The teacher, the pairs and the output."""

    data: list[str] = field(metadata={"help": "Pool of pairs: JSONL, Parquet, or ir_datasets:ID."})
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    bi_encoder: str | None = field(
        default=None, metadata={"help": "Bi-encoder of sentence-transformers, a directory or hub id: a weak teacher."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Tokens that the bi-encoder reads of a text; as it says itself by default."}
    )
    run: str | None = field(default=None, metadata={"help": "TREC run file whose order replaces a teacher's scores."})
    triton: list[str] | None = field(
        default=None, metadata={"help": "HOST:PORT (gRPC) of each server that serves the teacher."}
    )
    triton_model: str = field(default="teacher_ranker", metadata={"help": "Ensemble that the servers rank with."})
    in_flight: int = field(default=32, metadata={"help": "Queries under way for each server."})
    timeout_s: float = field(
        default=600.0, metadata={"help": "Seconds that a query may take, a restart of its server included."}
    )
    pairs_per_shard: int = field(
        default=100_000, metadata={"help": "Pairs of a shard, about; a finished shard is never scored again."}
    )


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments)
    check_source(arguments)
    if min(arguments.pairs_per_shard, arguments.in_flight) < 1 or arguments.timeout_s <= 0:
        raise DataError("--pairs_per_shard and --in_flight must be at least 1, --timeout_s above 0")
    check_writable(arguments.output)
    if arguments.run is not None:
        groups = read_groups(*arguments.data)
        sizes = array("I", (len(group.documents) for group in groups))
        scores = run_scores(arguments.run, groups)
        written = write_scores(arguments.output, scores, teacher=Path(arguments.run).name)
    else:
        sizes = survey(arguments.data)
        with scorer_of(arguments) as scorer:
            written = score_in_shards(arguments, scorer, sizes)
    if processes_together().is_main_process:
        print(f"{arguments.output}: {written:,} of {sum(sizes):,} pairs of {len(sizes):,} queries")


def check_source(arguments: ScoreArguments) -> None:
    """Raises DataError unless the scores come from one place."""
    sources = (arguments.model, arguments.triton, arguments.bi_encoder, arguments.run)
    if sum(source is not None for source in sources) != 1:
        raise DataError(
            "give either --model (a teacher's checkpoint), --triton (its servers), --bi_encoder (a weak teacher) or "
            "--run (a TREC run)"
        )
    if arguments.max_tokens is not None and arguments.bi_encoder is None:
        raise DataError("--max_tokens is for a --bi_encoder")
    if arguments.attention != "dense" and arguments.model is None:
        raise DataError("--attention is for a --model, whose rows are packed")


def survey(sources: Sequence[str]) -> array[int]:
    """The number of pairs of each query. Everything is read once, to find faults before the teacher's hours are
    spent."""
    groups = tqdm(iter_groups(*sources), desc="reading", unit="query", delay=5)
    return array("I", (len(group.documents) for group in groups))


@contextmanager
def scorer_of(arguments: ScoreArguments) -> Iterator[Scorer]:
    """The teacher, loaded here or behind its servers."""
    if arguments.model is not None:
        yield arguments.scorer(arguments.model)
        return
    if arguments.bi_encoder is not None:
        yield BiEncoder.load(arguments.bi_encoder, arguments, arguments.max_tokens)
        return
    with closing(
        TritonScorer(arguments.triton or [], arguments.triton_model, arguments.in_flight, arguments.timeout_s)
    ) as scorer:
        yield scorer


def score_in_shards(arguments: ScoreArguments, scorer: Scorer, pairs: array[int]) -> int:
    """Score every missing shard, join all of them, and return the number of pairs; ``pairs`` are those of each query.

    Raises ResumeError for shards of other settings.
    """
    processes = processes_together()
    output = Path(arguments.output)
    directory = output.with_name(f".{output.name}.shards")
    files = stamps([*arguments.data, *filter(None, [arguments.model, arguments.bi_encoder])])
    first = processes.is_main_process
    with held(directory) if first else nullcontext():
        with processes.main_process_first():
            if first:
                open_shards(directory, {**asdict(arguments), "files": files, "teacher": scorer.identity}, FREE)
                list_missing(directory, pairs, arguments.pairs_per_shard)
        done = sum(sum(pairs[shard.first : shard.last]) for shard in finished(directory))
        with progress(scorer.name, sum(pairs), initial=done, disable=not first) as bar, naming_flags(LESS_MEMORY):
            # The next shard is read while this one is scored.
            for shard, part in prefetched(taken(directory, iter_groups(*arguments.data)), ahead=1):
                write_scores(shard.path(directory), scorer.scores(part, bar), teacher=scorer.name)
        if first:
            join_scores(wait_for_all(directory), output)
            shutil.rmtree(directory)
    return sum(pairs)


if __name__ == "__main__":
    sys.exit(main())
