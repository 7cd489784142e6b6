"""The steps of a preparation that grow with impressions and with texts, on a Ray cluster.

Workers read files, drop sessions, count impressions and hash texts, as one machine does. The driver has what grows with
distinct queries, documents, and pairs of them at a position. Places travel, rows do not: workers write parts into a
folder beside the output. A part whose worker, node or driver died is made again, by another worker or by the same
command started again; those that are whole are not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from trainer.addresses import address_of, local, naming, shown
from trainer.cluster import LOCAL, ClusterArguments, checked, cores, joined, seen
from trainer.data.records import DataError
from trainer.preparation import parts
from trainer.preparation.documents import WORDED, banded_here
from trainer.preparation.engine import Engine, parquet
from trainer.preparation.failures import Failures
from trainer.preparation.impressions import drops_of
from trainer.preparation.ledger import Entry, Ledger
from trainer.preparation.mapping import Source, read_mapping
from trainer.preparation.parts import SMALL, SUMMARY, Job, Make
from trainer.preparation.reading import check_columns
from trainer.preparation.tables import read_all
from trainer.storage import UPLOADING, appears_whole, discard, fetched, listed
from trainer.training.resume import SETTINGS_FILE, held, open_shards, stamps

PARTITIONS = 64  # of the sessions, at most
TEXTS = 5000  # of a part
FREE = {"directory", "memory_limit", "temporary_dir"}  # what may differ when a command goes on


def sources_of(mapping: str, folder: str | None) -> list[Source]:
    """As ``read_mapping`` has them. Files of an address are listed and not fetched. Raises DataError as it does."""
    if folder is None or "://" not in folder or address_of(local(folder)) is None:
        return read_mapping(mapping, folder and str(local(folder)))
    with tempfile.TemporaryDirectory() as outline:  # files without content, whose names the patterns match
        with naming(folder):
            for name in listed(folder):
                path = Path(outline + name.removeprefix(folder.rstrip("/")))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        try:
            found = read_mapping(mapping, outline)
        except DataError as error:
            raise DataError(str(error).replace(outline, folder)) from error
        return [replace(each, files=tuple(_moved(file, outline, folder) for file in each.files)) for each in found]


def _moved(file: Path, outline: str, folder: str) -> Path:
    return local(folder) / file.relative_to(outline) if file.is_relative_to(outline) else file


class Part(NamedTuple):
    """A part that a worker makes, and what it is told of it."""

    name: str
    row: dict[str, Any]


@contextmanager
def on_cluster(cluster: ClusterArguments, sources: Sequence[Source], job: Job) -> Iterator[Cluster]:
    """A cluster for a job, with the folder of its parts, which is removed if the block ends without error.

    Raises ResumeError for a folder of a job with other settings.
    """
    directory = local(job.directory)
    files = [shown(str(file)) for source in sources for file in source.files]
    with joined(cluster.ray or LOCAL) as ray, held(directory):
        fetched(shown(str(directory / SETTINGS_FILE)), ())
        open_shards(directory, {**asdict(job), "files": stamps(files)}, FREE)
        yield Cluster(ray, cluster.ray_workers or cores(ray), sources, job)
        discard(directory / SETTINGS_FILE)  # without it, what is left of the parts is not taken for whole
        discard(directory)


@dataclass(frozen=True)
class Cluster:
    """The steps of a preparation that workers take."""

    ray: Any
    workers: int
    sources: Sequence[Source]
    job: Job

    def count_impressions(self, engine: Engine, ledger: Ledger, failures: Failures) -> dict[str, int]:
        """Fill all tables as ``read_all`` and ``count_impressions`` do, and return the rows of each kind.

        Raises DisRankerError for what a worker raises, and DataError for failures of all files together.
        """
        files = [
            Part(f"files/{number:06}", {"source": source, "name": str(file), "file": shown(str(file.absolute()))})
            for number, (source, file) in enumerate(
                (place, file) for place, source in enumerate(self.sources) for file in source.files
            )
        ]
        self._make("files", files, parts.read_file)
        rows = self._take_files(engine, failures, files)
        of_log = self._partitions(part for part in files if self.sources[part.row["source"]].kind == "log")
        counts = [
            Part(f"sessions/{number:06}", {"files": json.dumps(of_log.get(number, []))})
            for number in range(self.job.partitions)
        ]
        self._make("sessions", counts, parts.count_partition)
        dropped = [entry for part in counts for entry in self._summary(part)["dropped"]]
        ledger.dropped += drops_of(Entry(**entry) for entry in dropped)
        engine.run(f"""
            DROP TABLE impressions;
            CREATE TABLE impressions AS SELECT raw, document, position, era, sum(n)::BIGINT AS n,
                sum(clicks)::BIGINT AS clicks, sum(satisfied)::BIGINT AS satisfied, min(place) AS place
            FROM {self._tables(counts, "impressions")} GROUP BY ALL
        """)
        return rows

    def banded(self, engine: Engine, near: float) -> str:
        """SQL as ``banded_here`` gives it."""
        count = -(-engine.number(f"SELECT count(*) FROM ({WORDED})") // TEXTS)
        if not count:
            return banded_here(engine, near)
        if "texts" not in self._whole():
            texts = local(self.job.directory) / "texts"
            parts.clear(texts)
            with appears_whole(texts) as partial:
                numbered = f"SELECT *, (row_number() OVER (ORDER BY document) - 1) // {TEXTS} AS k FROM ({WORDED})"
                engine.copy(numbered, partial, "PARTITION_BY (k)")
                summary = {"partitions": parts.partitions(partial)}
                (partial / SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
        of_texts = self._partitions([Part("texts", {})])
        bands = [Part(f"bands/{number:06}", {"files": json.dumps(of_texts[number])}) for number in range(count)]
        self._make("texts", bands, parts.hash_texts)
        return f"FROM {self._tables(bands, 'bands')}"

    def _take_files(self, engine: Engine, failures: Failures, files: Sequence[Part]) -> dict[str, int]:
        """Fill all tables but impressions with what workers have read, and return the rows of each kind."""
        read_all(engine, [], failures)
        summaries, rows = [self._summary(part) for part in files], dict[str, int]()
        rest = zip(files, summaries, strict=True)
        for source in self.sources:
            read = [*islice(rest, len(source.files))]
            headers = zip(source.files, (summary["headers"] for _, summary in read), strict=True)
            check_columns(source, {file: header for file, found in headers for header in found})
            for part, summary in read:
                for kind, count in summary["rows"].items():
                    rows[kind] = rows.get(kind, 0) + count
                if "failed" in summary["tables"]:
                    failures.add(f"FROM {self._tables([part], 'failed')}")
        for table in SMALL[:-1]:
            if of := [part for part, summary in zip(files, summaries, strict=True) if table in summary["tables"]]:
                engine.run(f"INSERT INTO {table} FROM {self._tables(of, table)}")
        return rows

    def _make(self, name: str, wanted: Sequence[Part], make: Make) -> None:
        """Have workers make the parts that are missing. Raises DisRankerError for what a worker raises."""
        whole = self._whole()
        missing = [{"part": part.name, **part.row} for part in wanted if part.name not in whole]
        with tqdm(desc=name, total=len(wanted), initial=len(wanted) - len(missing)) as bar:
            if not missing:
                return
            answers = self.ray.data.from_items(missing, override_num_blocks=len(missing)).map(
                parts.made, fn_args=(self.job, make), num_cpus=1,
                compute=self.ray.data.TaskPoolStrategy(size=min(self.workers, len(missing))),
            )  # fmt: skip
            for row in map(checked, answers.iter_rows()):
                seen(local(self.job.directory) / row["part"] / SUMMARY, row["worker"], "--output_dir")
                bar.update()

    def _tables(self, of: Sequence[Part], table: str) -> str:
        """SQL for the rows of a table in all of the parts."""
        return parquet(self.job.part(f"{part.name}/{table}.parquet") for part in of)

    def _partitions(self, of: Iterable[Part]) -> dict[int, list[str]]:
        """The names of each partition's files in all of the parts."""
        found = dict[int, list[str]]()
        for part in of:
            for name in self._summary(part)["partitions"]:
                found.setdefault(int(Path(name).parent.name.removeprefix("k=")), []).append(f"{part.name}/{name}")
        return found

    def _whole(self) -> set[str]:
        """The names of parts that are there."""
        names = [Path(name.removeprefix(f"{self.job.directory}/")) for name in listed(self.job.directory)]
        found, half = ({str(each.parent) for each in names if each.name == end} for end in (SUMMARY, UPLOADING))
        return found - half

    def _summary(self, part: Part) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.job.part(f"{part.name}/{SUMMARY}").read_text(encoding="utf-8"))
        return found
