"""Queries that a teacher's servers refuse: beside their shard until all shards are there, then beside the output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from client.errors import InvalidRequestError
from trainer.data.rankings import write_scores
from trainer.data.records import DataError, QueryGroup
from trainer.scoring.servers import TritonScorer
from trainer.scoring.shards import finished
from trainer.scoring.teachers import Scorer
from trainer.storage import appears_whole, discard, fetched

FAILED = ".failed.jsonl"


@dataclass
class Refusals:
    """Those of the shard at ``path``. Of all shards in its folder together there may be ``allowed``."""

    path: Path
    allowed: int
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, group: QueryGroup, error: InvalidRequestError) -> None:
        """Raises the error where it is one too many."""
        documents = [document.doc_id for document in group.documents]
        self.found.append({"query_id": group.query_id, "documents": documents, "reason": str(error)})
        if len(self.found) + len(refused_in(self.path.parent)) > self.allowed:
            raise error.reworded(f"{error}; --max_failed {self.allowed:,} allows no more")

    def behind(self, scores: Iterator[tuple[str, str, float]]) -> Iterator[tuple[str, str, float]]:
        """The scores; behind the last one the refusals are written, before the shard is there."""
        yield from scores
        write_list(self.path.with_suffix(FAILED), self.found)


def write_shard(path: Path, scorer: Scorer, groups: Sequence[QueryGroup], bar: tqdm[NoReturn], max_failed: int) -> int:
    """Score the queries of a shard into ``path``, and return the number of scores.

    Raises InvalidRequestError for a query that the servers refuse, if ``max_failed`` others were refused.
    """
    refusals = Refusals(path, max_failed)
    if isinstance(scorer, TritonScorer):
        scorer.refused = refusals.add
    return write_scores(path, refusals.behind(scorer.scores(groups, bar)), teacher=scorer.name)


def refused_in(directory: Path) -> list[dict[str, Any]]:
    """The refused queries of the shards that are there."""
    files = [path for shard in finished(directory) if (path := shard.path(directory).with_suffix(FAILED)).is_file()]
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def allowed_in(directory: Path, allowed: int) -> list[dict[str, Any]]:
    """The same. Raises DataError for more than ``allowed``, which several workers may have found at the same time, or
    on nodes that do not see each other's."""
    refused = refused_in(directory)
    if len(refused) > allowed:
        raise DataError(f"{refused[-1]['reason']}; --max_failed {allowed:,} allows no more")
    return refused


def beside(output: Path) -> Path:
    return output.with_name(output.name + FAILED)


def write_list(path: Path, refused: Sequence[dict[str, Any]]) -> None:
    """A line for each; no file, also none of an earlier command or of another machine, where there are none."""
    fetched(str(path), ())
    if refused:
        with appears_whole(path) as partial:
            partial.write_text("".join(json.dumps(each) + "\n" for each in refused), encoding="utf-8")
    elif path.exists():
        discard(path)
