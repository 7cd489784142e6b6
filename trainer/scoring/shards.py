"""Shards: files of the scores of neighbouring queries, by which a job that was stopped resumes.

A shard's name is the place of its first query in the data and the place behind its last. The first process lists the
shards that are missing, and every process takes the next one of the list that no other has taken.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from client.files import appears_whole
from trainer.data.records import QueryGroup

LIST_FILE = "missing.json"


class Shard(NamedTuple):
    """The queries from ``first`` up to ``last``, which is not among them."""

    first: int
    last: int

    def path(self, directory: Path) -> Path:
        return directory / f"{self.first:09}-{self.last:09}.parquet"


def finished(directory: Path) -> list[Shard]:
    """The shards that are there, in order."""
    return sorted(Shard(*map(int, path.stem.split("-"))) for path in directory.glob("*-*.parquet"))


def list_missing(directory: Path, pairs: Sequence[int], pairs_per_shard: int) -> None:
    """Write the list of missing shards; nobody has taken any of them.

    ``pairs`` are those of each query. The shards that are there may have been made with another ``pairs_per_shard``.
    """
    for claim in directory.glob("*.claim"):
        claim.unlink()
    missing = list[Shard]()
    begin = 0
    for done in [*finished(directory), Shard(len(pairs), len(pairs))]:
        size = 0
        for last in range(begin + 1, done.first + 1):
            size += pairs[last - 1]
            if size >= pairs_per_shard or last == done.first:
                missing.append(Shard(begin, last))
                begin, size = last, 0
        begin = done.last
    with appears_whole(directory / LIST_FILE) as partial:
        partial.write_text(json.dumps(missing), encoding="utf-8")


def taken(directory: Path, groups: Iterable[QueryGroup]) -> Iterator[tuple[Shard, list[QueryGroup]]]:
    """The shards of the list that this process takes, each with its queries, in one pass over all ``groups``."""
    remaining, place = iter(groups), 0
    for shard in missing(directory):
        if not _take(directory, shard):
            continue
        queries = list(islice(remaining, shard.first - place, shard.last - place))
        place = shard.last
        yield shard, queries


def wait_for_all(directory: Path) -> list[Path]:
    """The files of all shards in order, as soon as other processes have finished theirs.

    It looks at the files: a barrier of the processes would give up after its time limit, while others work for hours.
    """
    files = [shard.path(directory) for shard in missing(directory)]
    while not all(file.exists() for file in files):
        time.sleep(0.2)
    return [shard.path(directory) for shard in finished(directory)]


def missing(directory: Path) -> list[Shard]:
    """Those of the list, also if somebody has taken or made them since."""
    return [Shard(*each) for each in json.loads((directory / LIST_FILE).read_text(encoding="utf-8"))]


def _take(directory: Path, shard: Shard) -> bool:
    """Whether no other process had taken it."""
    try:
        os.close(os.open(shard.path(directory).with_suffix(".claim"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
