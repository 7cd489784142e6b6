"""From raw logs to the files that the stages read: clicks, judgments, splits, and a pool of candidates.

    python -m trainer.prepare --mapping impressions --input raw/ --output_dir data --position_bias estimated
    python -m trainer.prepare --mapping my-log.toml --output_dir data
    python -m trainer.prepare --mapping beir --input scifact/ --output_dir data --shares 0 0 1 1

A mapping says which columns hold what: a TOML file, or the name of a ready one. The output folder appears whole. It
has records (``log``, ``judged``, ``pool``, ``dev``, ``test`` and clicks beside them), what failed, and a report.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from trainer.addresses import shown
from trainer.command import command, parse
from trainer.data.records import DataError
from trainer.preparation.candidates import PoolArguments, fill_pool
from trainer.preparation.clicks import NONE, ClickArguments, weigh
from trainer.preparation.documents import one_of_each
from trainer.preparation.engine import Engine, naming_limits
from trainer.preparation.judgments import grade
from trainer.preparation.ledger import Ledger
from trainer.preparation.mapping import read_mapping
from trainer.preparation.output import write_all, write_failed
from trainer.preparation.queries import group_queries
from trainer.preparation.reading import Failures
from trainer.preparation.report import length_in, report_of, write_report
from trainer.preparation.sessions import SessionArguments, drop_sessions
from trainer.preparation.splits import SplitArguments, drop_untimed, split_queries
from trainer.preparation.tables import read_all
from trainer.storage import appears_whole, check_writable


@dataclass(kw_only=True)
class PrepareArguments:
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
        default="1.5GB", metadata={"help": "Memory for tables, beside some 300 MB; what does not fit is on the disk."}
    )
    threads: int | None = field(default=None, metadata={"help": "All cores by default."})
    temporary_dir: str | None = field(
        default=None, metadata={"help": "Where tables lie meanwhile; by default beside the output."}
    )

    def __post_init__(self) -> None:
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
        argv, PrepareArguments, SessionArguments, ClickArguments, SplitArguments, PoolArguments
    )
    sources, length = read_mapping(arguments.mapping, arguments.input), length_in(arguments.model)
    output = Path(arguments.output_dir)
    check_writable(output)
    with appears_whole(output) as partial, naming_limits(output):
        partial.mkdir()
        work = Path(tempfile.mkdtemp(prefix="tables-", dir=arguments.temporary_dir or partial))
        try:
            with closing(Engine(work, arguments.memory_limit, arguments.threads)) as engine:
                ledger, failures = Ledger(engine), Failures(engine, arguments.max_failed)
                rows = read_all(engine, sources, failures)
                drop_untimed(engine, ledger, splits)
                drop_sessions(engine, ledger, sessions)
                one_of_each(engine, ledger, arguments.near_duplicates)
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


if __name__ == "__main__":
    sys.exit(main())
