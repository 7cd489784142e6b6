"""Memory of reading training data as a stream, next to the size of the file.

    python -m bench.streaming --gigabytes 2 --directory /tmp/stream

Writes a tenth of the size and the whole as JSONL and as Parquet, reads each for one epoch in a process of its
own, and prints that process's peak of resident memory.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from tqdm import tqdm

from client.files import appears_whole
from trainer.command import command, console_of, parse
from trainer.rank_sft import Judged
from trainer.training.run import StageArguments
from trainer.training.streams import DataArguments, training_groups

WORDS = [f"word{number}" for number in range(20_000)]
DOCUMENTS, SUMMARY_WORDS = 20, 60
ROWS_AT_ONCE = 500


@dataclass
class StreamingArguments:
    """How much to read."""

    directory: str = field(metadata={"help": "Where the files are written; those that are there are kept."})
    gigabytes: float = field(default=2.0, metadata={"help": "Size of the larger JSONL file."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Queries in memory."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, StreamingArguments)
    table = Table(title=f"one epoch, {arguments.shuffle_buffer:,} queries in memory")
    for heading in ("file", "MB", "queries", "peak MB", "seconds", "MB/s"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for share in (0.1, 1.0):
        for path in written(Path(arguments.directory), int(arguments.gigabytes * share * 1e9)):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                queries, peak, seconds = process.submit(read, str(path), arguments.shuffle_buffer).result()
            size = path.stat().st_size / 1e6
            cells = (size, queries, peak / 1e6, seconds, size / seconds)
            table.add_row(path.name, *(f"{value:,.0f}" for value in cells))
    console_of(100).print(table)


def read(path: str, shuffle_buffer: int) -> tuple[int, int, float]:
    """Queries, peak bytes of this process, and seconds of the epoch; the pass that checks the file comes before."""
    arguments = DataArguments(data=[path], shuffle_buffer=shuffle_buffer)
    training = StageArguments(output_dir="unused", use_cpu=True, report_to="none", disable_tqdm=True)
    stream = training_groups(arguments, Judged(), training, "no two documents have different labels")
    started = time.perf_counter()
    queries = sum(1 for _ in iter(stream))
    return queries, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - started


def written(directory: Path, size: int) -> Iterator[Path]:
    """The file as JSONL of ``size`` bytes, and as Parquet of the same records."""
    directory.mkdir(parents=True, exist_ok=True)
    jsonl, parquet = (directory / f"{size / 1e9:g}GB.{suffix}" for suffix in ("jsonl", "parquet"))
    if not jsonl.exists():
        with (
            appears_whole(jsonl) as partial,
            partial.open("w", encoding="utf-8") as lines,
            tqdm(total=size, unit="B", unit_scale=True, desc=jsonl.name) as bar,
        ):
            for record in records():
                bar.update(lines.write(json.dumps(record) + "\n"))
                if bar.n >= size:
                    break
    yield jsonl
    if not parquet.exists():
        with appears_whole(parquet) as partial, jsonl.open(encoding="utf-8") as lines:
            writer = None
            while rows := [json.loads(line) for line in islice(lines, ROWS_AT_ONCE)]:
                part = pa.Table.from_pylist(rows)
                writer = writer or pq.ParquetWriter(partial, part.schema)
                writer.write_table(part)
            if writer is not None:
                writer.close()
    yield parquet


def records() -> Iterator[dict[str, Any]]:
    draw = random.Random(0)
    number = 0
    while True:
        documents = [
            {
                "doc_id": f"d{number}-{place}",
                "title": " ".join(draw.choices(WORDS, k=8)),
                "summary": " ".join(draw.choices(WORDS, k=SUMMARY_WORDS)),
                "label": place % 4,
                "clicks": 0,
            }
            for place in range(DOCUMENTS)
        ]
        yield {"query_id": f"q{number}", "query": " ".join(draw.choices(WORDS, k=3)), "documents": documents}
        number += 1


if __name__ == "__main__":
    sys.exit(main())
