"""Parts of a preparation that any machine can make: a file's tables, counts of some sessions, hashes of some texts.

A part is a folder of Parquet with a summary in it, which appears whole.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from client.errors import DisRankerError
from trainer.addresses import address_of, local
from trainer.cluster import ClusterError, Row, told
from trainer.preparation.clicks import ClickArguments
from trainer.preparation.documents import banded_here
from trainer.preparation.engine import Engine, naming_limits, parquet, text
from trainer.preparation.failures import Failures
from trainer.preparation.impressions import count_impressions
from trainer.preparation.ledger import Ledger
from trainer.preparation.mapping import Source
from trainer.preparation.reading import Headers
from trainer.preparation.sessions import SessionArguments
from trainer.preparation.splits import SplitArguments
from trainer.preparation.tables import read_all
from trainer.storage import appears_whole, fetched

SUMMARY = "part.json"
SMALL = ("texts", "named", "judgments", "run", "failed")  # tables of a file beside its impressions


@dataclass(frozen=True)
class Job:
    """The words to every worker: the sources without their files, and what decides how a part turns out."""

    sources: Sequence[Source]
    directory: str  # of the parts, or its address
    partitions: int  # of the sessions
    near: float
    sessions: SessionArguments
    clicks: ClickArguments
    splits: SplitArguments
    memory_limit: str
    temporary_dir: str | None

    def part(self, name: str) -> Path:
        return Path(fetched(f"{self.directory}/{name}", ()))

    @contextmanager
    def engine(self, partial: Path) -> Iterator[Engine]:
        """Its tables lie in ``partial`` meanwhile, unless a folder is named for them."""
        with (
            tempfile.TemporaryDirectory(prefix="tables-", dir=self.temporary_dir or partial) as folder,
            closing(Engine(Path(folder), self.memory_limit, threads=1)) as engine,
        ):
            yield engine

    @contextmanager
    def files(self, row: Row) -> Iterator[list[Path]]:
        """The files of a partition; copies of what a store has are removed after use.

        Raises ClusterError for one that is gone, though its part has named it.
        """
        files = [self.part(name) for name in json.loads(row["files"])]
        for file in files:
            if not file.is_file():
                raise ClusterError(f"{file}: is gone: remove {self.directory}, and the same command begins anew")
        yield files
        for file in files:
            if address_of(file) is not None:
                file.unlink()


Make = Callable[[Job, Engine, Row, Path], dict[str, Any]]


def made(row: Row, job: Job, make: Make) -> dict[str, Any]:
    """The name of the row's part, which ``make`` writes into a folder and whose summary it returns, or the fault."""
    return told(lambda: _made(row, job, make))


def _made(row: Row, job: Job, make: Make) -> dict[str, Any]:
    path = local(job.directory) / row["part"]
    clear(path)
    try:
        if not path.is_dir():
            with appears_whole(path) as partial, naming_limits(path):
                partial.mkdir()
                with job.engine(partial) as engine:
                    summary = make(job, engine, row, partial)
                (partial / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
            clear(path)  # who needs it, mostly on another machine, fetches it
    except DisRankerError:
        # Else a worker of a command that died was first.
        if address_of(path) is not None or not path.is_dir():
            raise
    return {"part": row["part"], "worker": socket.gethostname()}


def clear(path: Path) -> None:
    """Remove from the mirror a part that the store has, or one of before that it has not."""
    if address_of(path) is not None and path.is_dir():
        shutil.rmtree(path)


def partitions(folder: Path) -> list[str]:
    """The files of all partitions in a folder, as its summary has them."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("**/k=*/*.parquet"))


def read_file(job: Job, engine: Engine, row: Row, folder: Path) -> dict[str, Any]:
    """The tables of one file, impressions in partitions that have whole sessions.

    How many rows may fail is for the driver to judge, which sees the columns of all files first.
    """
    given, path, headers = row["name"], Path(fetched(row["file"], ())), Headers()
    if not path.is_file():
        raise ClusterError(f"{given}: {socket.gethostname()} does not see it: all nodes need the input")
    source = replace(job.sources[row["source"]], files=(path,))
    try:
        rows = read_all(engine, [source], Failures(engine, sys.maxsize), lambda _, found: headers.update(found))
    except DisRankerError as error:
        error.args = (str(error).replace(str(path), given),)
        raise
    file = f"{text(given)} AS file"
    reason = f"replace(reason, {text(path)}, {text(given)}) AS reason"
    tables = [table for table in SMALL if engine.number(f"SELECT count(*) FROM {table}")]
    for table in tables:
        named = {"texts": "*", "failed": f"* REPLACE ({file}, {reason})"}.get(table, f"* REPLACE ({file})")
        engine.copy(f"SELECT {named} FROM {table}", folder / f"{table}.parquet")
    named = f"* EXCLUDE (place, n) REPLACE ({file}), md5_number_lower(coalesce(session, raw)) % {job.partitions} AS k"
    engine.copy(f"SELECT {named} FROM impressions", folder / "impressions", "PARTITION_BY (k)")
    return {"rows": rows, "headers": [*headers.values()], "tables": tables, "partitions": partitions(folder)}


def count_partition(job: Job, engine: Engine, row: Row, folder: Path) -> dict[str, Any]:
    """The impressions of some sessions, counted, and what was dropped of them."""
    read_all(engine, [], Failures(engine, 0))
    with job.files(row) as files:
        if files:
            engine.run(f"INSERT INTO impressions FROM {parquet(files)}")
    ledger = Ledger(engine)
    count_impressions(engine, ledger, job.sessions, job.clicks, job.splits)
    engine.copy("FROM impressions", folder / "impressions.parquet")
    return {"dropped": [asdict(entry) for entry in ledger.dropped]}


def hash_texts(job: Job, engine: Engine, row: Row, folder: Path) -> dict[str, Any]:
    """The buckets of some texts."""
    with job.files(row) as files:
        engine.copy(banded_here(engine, job.near, f"FROM {parquet(files)}"), folder / "bands.parquet")
    return {}
