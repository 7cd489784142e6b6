"""Relabelling: teacher scores for every pair of a pool, as Parquet.

    python -m trainer.score --model runs/teacher --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --triton a:8001 b:8001 --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --run llm.run --data log.jsonl --output runs/teacher_scores.parquet
    python -m trainer.score --bi_encoder MODEL --data pool.jsonl --output runs/weak_scores.parquet
    python -m trainer.score --ray auto --model /shared/teacher --data /shared/pool --output /shared/scores.parquet

A teacher's scores are written in shards, which lie beside the output until all of them are there. After a kill the
same command resumes with the missing ones. Under ``torchrun`` each process takes the next shard of one list. A teacher
that Triton serves (``build_engines.py --teacher``) scores on all of its servers at once. On a Ray cluster each worker
scores the next shard (scoring/cluster.py). A run file holds an order and no scores: the score is -log(rank) within its
query. Several are put one behind the other. A bi-encoder's score is the cosine of its two vectors, or of its
tokens' states the MaxSim. Source: arXiv 2411.04539, section 3.3.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
from tqdm import tqdm

from client.command import say
from trainer.addresses import shown
from trainer.cluster import LOCAL, joined
from trainer.command import command, parse
from trainer.data.rankings import join_scores, write_scores
from trainer.data.records import DataError, iter_groups, read_groups
from trainer.scoring import cluster
from trainer.scoring.checkpoint import LESS_MEMORY, processes_together, progress, run_scores
from trainer.scoring.memory import naming_flags
from trainer.scoring.prefetch import prefetched
from trainer.scoring.refusals import allowed_in, beside, write_list, write_shard
from trainer.scoring.shards import finished, list_missing, missing, taken, wait_for_all
from trainer.scoring.teachers import ScoreArguments, scorer_of
from trainer.storage import check_writable, discard, fetched
from trainer.training.resume import held, open_shards, stamps

# What may differ when a job resumes.
FREE = {
    "attention", "in_flight", "max_failed", "pairs_per_shard", "ray", "ray_workers", "rows_per_batch", "timeout_s",
    "triton", "triton_model",
}  # fmt: skip


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ScoreArguments, far=("--data", "--model", "--bi_encoder"))
    check_writable(arguments.output)
    if arguments.ray is not None:
        sizes = score_on_cluster(arguments)
    elif arguments.run is not None:
        groups = read_groups(*map(fetched, arguments.data))
        sizes = array("I", (len(group.documents) for group in groups))
        scores = run_scores(arguments.run, groups)
        write_scores(arguments.output, scores, teacher="+".join(Path(run).name for run in arguments.run))
        write_list(beside(Path(arguments.output)), [])
    else:
        sizes = score_here(arguments)
    if processes_together().is_main_process:
        _report(Path(arguments.output), sizes)


def _report(output: Path, sizes: array[int]) -> None:
    written = pq.read_metadata(output).num_rows
    print(f"{shown(str(output))}: {written:,} of {sum(sizes):,} pairs of {len(sizes):,} queries")
    if (failed := beside(output)).exists():
        lines = failed.read_text(encoding="utf-8").splitlines()
        print(f"{shown(str(failed))}: {len(lines):,} queries that the servers refused")


def score_here(arguments: ScoreArguments) -> array[int]:
    """The pairs of each query, scored or refused."""
    sources = [fetched(source) for source in arguments.data]
    sizes = pairs_of_queries(sources)
    with (
        scorer_of(arguments) as scorer,
        shards_of(arguments, sizes, scorer.identity) as directory,
        _bar(scorer.name, sizes, directory) as bar,
        naming_flags(LESS_MEMORY),
    ):
        # The next shard is read while this one is scored.
        for shard, part in prefetched(taken(directory, iter_groups(*sources)), ahead=1):
            write_shard(shard.path(directory), scorer, part, bar, arguments.max_failed)
    return sizes


def score_on_cluster(arguments: ScoreArguments) -> array[int]:
    """The same by the workers of a Ray cluster, whose speeds go to standard error."""
    if processes_together().num_processes > 1:
        raise DataError("--ray starts its own processes: leave torchrun out")
    with joined(arguments.ray or LOCAL) as ray:
        anywhere = cluster.with_whole_paths(arguments)
        found = cluster.survey(ray, anywhere.data)
        with scorer_of(arguments) if arguments.triton else nullcontext() as servers:
            identity = servers.identity if servers else None
        name = arguments.model or arguments.bi_encoder or arguments.triton_model
        with shards_of(arguments, found.pairs, identity) as directory, _bar(name, found.pairs, directory) as bar:
            speeds = cluster.score_shards(ray, anywhere, missing(directory), found, directory, bar)
    for worker, speed in speeds.items():
        say(f"{worker}: {speed.pairs:,} pairs, {speed.pairs_per_s:,.0f} pairs/s")
    return found.pairs


def pairs_of_queries(sources: Sequence[str]) -> array[int]:
    """The number of pairs of each query. Everything is read once, to find faults before the teacher's hours are
    spent."""
    groups = tqdm(iter_groups(*sources), desc="reading", unit="query", delay=5)
    return array("I", (len(group.documents) for group in groups))


@contextmanager
def shards_of(arguments: ScoreArguments, pairs: array[int], identity: str | None) -> Iterator[Path]:
    """The folder for the shards, with a list of the missing ones; behind the block they are joined to the output.

    ``pairs`` are those of each query, ``identity`` the teacher's, if its files do not say which it is. Raises
    ResumeError for shards of other settings.
    """
    processes, output = processes_together(), Path(arguments.output)
    directory, first = output.with_name(f".{output.name}.shards"), processes.is_main_process
    files = stamps([*arguments.data, *filter(None, [arguments.model, arguments.bi_encoder])])
    with held(directory) if first else nullcontext():
        with processes.main_process_first():
            if first:
                open_shards(directory, {**asdict(arguments), "files": files, "teacher": identity}, FREE)
                list_missing(directory, pairs, arguments.pairs_per_shard)
        yield directory
        if first:
            shards = wait_for_all(directory)
            write_list(beside(output), allowed_in(directory, arguments.max_failed))
            join_scores(shards, output)
            discard(directory)


def _bar(name: str, pairs: array[int], directory: Path) -> tqdm[NoReturn]:
    done = sum(sum(pairs[shard.first : shard.last]) for shard in finished(directory))
    return progress(name, sum(pairs), initial=done, disable=not processes_together().is_main_process)


if __name__ == "__main__":
    sys.exit(main())
