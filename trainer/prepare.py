"""From raw logs to the files that the stages read: clicks, judgments, splits, and a pool of candidates.

    python -m trainer.prepare --mapping impressions --input raw/ --output_dir data --position_bias estimated
    python -m trainer.prepare --mapping my-log.toml --output_dir data
    python -m trainer.prepare --mapping beir --input scifact/ --output_dir data --shares 0 0 1 1
    python -m trainer.prepare --ray auto --mapping impressions --input /shared/raw --output_dir /shared/data

A mapping says which columns hold what: a TOML file, or the name of a ready one. The output folder appears whole. It
has records (``log``, ``judged``, ``pool``, ``dev``, ``test`` and clicks beside them), what failed, and a report. On a
Ray cluster workers read files, count impressions and hash texts (preparation/cluster.py); what comes out is the same.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.addresses import shown
from trainer.cluster import ClusterArguments, anywhere
from trainer.command import command, parse
from trainer.data.records import DataError
from trainer.preparation.candidates import PoolArguments, fill_pool
from trainer.preparation.clicks import NONE, ClickArguments, weigh
from trainer.preparation.cluster import PARTITIONS, Cluster, on_cluster, sources_of
from trainer.preparation.documents import one_of_each
from trainer.preparation.engine import Engine, naming_limits
from trainer.preparation.failures import Failures
from trainer.preparation.impressions import count_impressions, refuse_untimed
from trainer.preparation.judgments import grade
from trainer.preparation.ledger import Ledger
from trainer.preparation.mapping import Source, read_mapping
from trainer.preparation.output import write_all, write_failed
from trainer.preparation.parts import Job
from trainer.preparation.queries import group_queries
from trainer.preparation.report import length_in, report_of, write_report
from trainer.preparation.sessions import SessionArguments
from trainer.preparation.splits import SplitArguments, split_queries
from trainer.preparation.tables import read_all
from trainer.storage import appears_whole, check_writable, fetched


@dataclass(kw_only=True)
class PrepareArguments(ClusterArguments):
    """Input, output and the means of a preparation."""

    mapping: str = field(
        metadata={"help": "TOML file of columns, or a ready one: impressions, pages, beir, msmarco, trec."}
    )
    output_dir: str = field(metadata={"help": "Folder to make."})
    input: str | None = field(
        default=None, metadata={"help": "Folder of the mapping's files; by default that of the mapping."}
    )
    fold_case: bool = field(default=True, metadata={"help": "Whether queries that differ in case only are one."})
    near_duplicates: float = field(
        default=0.9, metadata={"help": "Resemblance from which two documents are one; 0 for equal texts only."}
    )
    max_failed: int = field(default=0, metadata={"help": "Rows and files that may fail; they are in failed.jsonl."})
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint whose tokens the report counts; words without one."}
    )
    memory_limit: str = field(
        default="1.5GB",
        metadata={"help": "Memory for tables, of each worker too, beside some 300 MB; the rest is on the disk."},
    )
    threads: int | None = field(default=None, metadata={"help": "All cores by default."})
    temporary_dir: str | None = field(
        default=None, metadata={"help": "Where tables lie meanwhile; by default beside the output."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.near_duplicates <= 1:
            raise DataError(f"--near_duplicates must be from 0 to 1, not {self.near_duplicates:g}")
        if self.max_failed < 0 or (self.threads is not None and self.threads < 1):
            raise DataError("--max_failed must be at least 0, --threads at least 1")
        if Path(self.output_dir).exists():
            raise DataError(f"{self.output_dir}: exists already; remove it or choose another --output_dir")
        if self.temporary_dir is not None and not Path(self.temporary_dir).is_dir():
            raise DataError(f"--temporary_dir {self.temporary_dir} is no folder")


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments, sessions, clicks, splits, pool = parse(
        argv, PrepareArguments, SessionArguments, ClickArguments, SplitArguments, PoolArguments, far=("--input",)
    )
    if arguments.ray is None:
        sources = read_mapping(arguments.mapping, arguments.input and fetched(arguments.input))
    else:
        sources = sources_of(arguments.mapping, arguments.input)
    length, output = length_in(arguments.model), Path(arguments.output_dir)
    check_writable(output)
    with (
        cluster_of(arguments, sources, sessions, clicks, splits) as cluster,
        appears_whole(output) as partial,
        naming_limits(output),
    ):
        partial.mkdir()
        work = Path(tempfile.mkdtemp(prefix="tables-", dir=arguments.temporary_dir or partial))
        try:
            with closing(Engine(work, arguments.memory_limit, arguments.threads)) as engine:
                ledger, failures = Ledger(engine), Failures(engine, arguments.max_failed)
                if cluster is not None:
                    rows = cluster.count_impressions(engine, ledger, failures)
                else:
                    rows = read_all(engine, sources, failures)
                    count_impressions(engine, ledger, sessions, clicks, splits)
                refuse_untimed(engine, ledger, splits)
                one_of_each(engine, ledger, arguments.near_duplicates, cluster.banded if cluster else None)
                group_queries(engine, ledger, arguments.fold_case)
                split_queries(engine, ledger, splits)
                grade(engine, ledger)
                correction = weigh(engine, ledger, clicks)
                fill_pool(engine, ledger, pool)
                files = write_all(engine, partial, weighted=clicks.position_bias != NONE)
                if not files:
                    raise DataError(f"nothing is left of {arguments.mapping}: {ledger.summary()}")
                write_failed(engine, partial / "failed.jsonl")
                write_report(report_of(engine, ledger, rows, correction, files, length), partial)
        finally:
            shutil.rmtree(work)
    print(ledger.summary())
    for name, counts in files.items():
        print(shown(f"{output / name}: {counts['queries']:,} queries, {counts['pairs']:,} pairs"))


def cluster_of(
    arguments: PrepareArguments,
    sources: Sequence[Source],
    sessions: SessionArguments,
    clicks: ClickArguments,
    splits: SplitArguments,
) -> AbstractContextManager[Cluster | None]:
    """The Ray cluster, if there is one to work on."""
    if arguments.ray is None:
        return nullcontext()
    output = Path(arguments.output_dir).absolute()
    logs = sum(len(source.files) for source in sources if source.kind == "log")
    job = Job(
        sources=[replace(source, files=()) for source in sources],
        directory=shown(str(output.with_name(f".{output.name}.parts"))),
        partitions=max(1, min(PARTITIONS, logs)),
        near=arguments.near_duplicates,
        sessions=sessions,
        clicks=clicks,
        splits=splits,
        memory_limit=arguments.memory_limit,
        temporary_dir=arguments.temporary_dir and anywhere(arguments.temporary_dir),
    )
    return on_cluster(arguments, sources, job)


if __name__ == "__main__":
    sys.exit(main())
