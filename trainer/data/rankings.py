"""Files of scores and orders: TREC runs and qrels, Parquet of teacher scores."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from client.inputs import text_of
from trainer.data.identities import identity, repeated
from trainer.data.records import HIGHEST, QueryGroup, Scores
from trainer.data.rows import DataError, parquet_rows, parsed_lines
from trainer.storage import appears_whole

SCORE_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("doc_id", pa.string()), ("score", pa.float32()), ("teacher", pa.string())]
)
ROWS_AT_ONCE = 65_536


def read_run(path: str | Path) -> Scores:
    """A TREC run (``qid Q0 docid rank score tag``): the score is -rank, to keep the run's order.

    Raises DataError for a rank that comes twice, since the order would not be known.
    """
    run = _trec(Path(path), 6, _minus_rank, "a whole number")
    for query_id, documents in run.items():
        for first, second in pairwise(best_first(documents)):
            if documents[first] == documents[second]:
                raise DataError(
                    f"{path}: query {query_id!r}: documents {first!r} and {second!r} both have rank "
                    f"{-documents[first]:.0f}: number the ranks, the order of equal ones is not known"
                )
    return run


def read_ranking(path: str | Path) -> Scores:
    """A Parquet file of ``trainer.score``, by its name, or else a TREC run."""
    return read_scores(path) if Path(path).suffix == ".parquet" else read_run(path)


def best_first(documents: Mapping[str, float]) -> list[str]:
    """The ids, those with equal scores in the order in which they came."""
    return sorted(documents, key=documents.__getitem__, reverse=True)


def read_qrels(path: str | Path) -> Scores:
    """TREC judgments (``qid 0 docid grade``) as grades, which may have fractions."""
    return _trec(Path(path), 4, _grade, "a finite number")


def read_scores(path: str | Path) -> Scores:
    """Teacher scores that ``trainer.score`` wrote: float32 logits."""
    scores: Scores = {}
    for number, (query_id, doc_id, score) in enumerate(_score_rows(Path(path)), start=1):
        if doc_id in scores.setdefault(query_id, {}):
            raise DataError(f"{path}: row {number}, query {query_id!r}, document {doc_id!r}: scored twice")
        scores[query_id][doc_id] = score
    return scores


class ScoreTable:
    """The scores of a file that is too large for ``read_scores``: 21 bytes a pair, in any order.

    Raises DataError as ``read_scores`` does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        identities, scores = array("Q"), array("f")
        for query_id, doc_id, score in _score_rows(self.path):
            identities.append(identity(query_id, doc_id))
            scores.append(score)
        if suspects := repeated(identities):
            self._refuse_repeated(suspects)
        order = np.argsort(np.frombuffer(identities, dtype=np.uint64))
        self._identities = np.frombuffer(identities, dtype=np.uint64)[order]
        self.scores = np.frombuffer(scores, dtype=np.float32)[order]
        self._asked_for = np.zeros(len(order), dtype=bool)

    def get(self, query_id: str, doc_id: str) -> float:
        """The score of the pair, NaN where the file has none."""
        wanted = np.uint64(identity(query_id, doc_id))
        place = int(np.searchsorted(self._identities, wanted))
        if place == len(self._identities) or self._identities[place] != wanted:
            return math.nan
        self._asked_for[place] = True
        return float(self.scores[place])

    def check_known(self) -> None:
        """Raises DataError for a pair that was never asked for: after a pass over the data, it is not in them."""
        if self._asked_for.all():
            return
        unknown = set(self._identities[~self._asked_for].tolist())
        for number, (query_id, doc_id, _) in enumerate(_score_rows(self.path), start=1):
            if identity(query_id, doc_id) in unknown:
                raise DataError(
                    f"{self.path}: row {number}: document {doc_id!r} of query {query_id!r} is not in the data "
                    f"({len(unknown):,} such rows)"
                )

    def _refuse_repeated(self, suspects: set[int]) -> None:
        seen: set[tuple[str, str]] = set()
        for number, (query_id, doc_id, _) in enumerate(_score_rows(self.path), start=1):
            if identity(query_id, doc_id) in suspects:
                if (query_id, doc_id) in seen:
                    raise DataError(f"{self.path}: row {number}, query {query_id!r}, document {doc_id!r}: scored twice")
                seen.add((query_id, doc_id))


def teacher_names(path: str | Path) -> list[str]:
    """The teachers that a file of scores names, by the statistics of its row groups; none where it has no such column.

    Of a row group with several, the first and the last in the order of the alphabet.
    """
    metadata = pq.ParquetFile(path).metadata
    columns = [metadata.row_group(group).column(place)
               for group in range(metadata.num_row_groups) for place in range(metadata.num_columns)]  # fmt: skip
    known = [column.statistics for column in columns if column.path_in_schema == "teacher" and column.statistics]
    return sorted({name for each in known if each.has_min_max for name in (each.min, each.max)})


def write_scores(path: str | Path, scores: Iterable[tuple[str, str, float]], teacher: str) -> int:
    """Parquet rows ``query_id, doc_id, score, teacher``, and their number; the file appears whole or not at all."""
    written = 0
    with appears_whole(Path(path)) as partial, pq.ParquetWriter(partial, SCORE_SCHEMA) as writer:
        remaining = iter(scores)
        while rows := list(islice(remaining, ROWS_AT_ONCE)):
            columns = [list(column) for column in zip(*rows, strict=True)]
            writer.write_table(pa.table([*columns, [teacher] * len(rows)], schema=SCORE_SCHEMA))
            written += len(rows)
    return written


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """A TREC run of each query's documents, which come best first; it appears whole or not at all.

    Scores have the nine digits that tell any two of float32 apart.
    """
    with appears_whole(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        for query_id, documents in run.items():
            for rank, (doc_id, score) in enumerate(documents.items(), start=1):
                file.write(f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}\n")


def join_scores(shards: Sequence[Path], path: Path) -> None:
    """One file of the rows of all shards, in their order; it appears whole or not at all."""
    with appears_whole(path) as partial, pq.ParquetWriter(partial, SCORE_SCHEMA) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard))


def check_known(scores: Scores, groups: Iterable[QueryGroup], source: str | Path) -> None:
    """Raises DataError for the first query or document of ``scores`` that no group has."""
    known = {group.query_id: {document.doc_id for document in group.documents} for group in groups}
    for query_id, documents in scores.items():
        if query_id not in known:
            raise DataError(f"{source}: query {query_id!r} is not in the data")
        for doc_id in documents:
            if doc_id not in known[query_id]:
                raise DataError(f"{source}: document {doc_id!r} of query {query_id!r} is not in the data")


def candidates(
    run: Scores, groups: Sequence[QueryGroup], depth: int | None, source: str, known: str = "in the data"
) -> list[QueryGroup]:
    """Those of the groups that the run has, each with the run's first documents: ``depth`` of them, or all.

    Raises DataError as ``of_known_queries`` does; documents below the depth need not be in the data.
    """
    first = {query_id: dict.fromkeys(best_first(documents)[:depth], 0.0) for query_id, documents in run.items()}
    wanted = of_known_queries(first, groups, source, known)
    return [
        replace(group, documents=tuple(each for each in group.documents if each.doc_id in wanted[group.query_id]))
        for group in groups
        if group.query_id in wanted
    ]


def of_known_queries(scores: Scores, groups: Iterable[QueryGroup], source: str, known: str = "in the data") -> Scores:
    """The scores of those queries that are among the groups.

    Raises DataError where there is none, which are not ``known`` then, and for a document that its group has not.
    """
    judged = {group.query_id: group for group in groups}
    wanted = {query_id: documents for query_id, documents in scores.items() if query_id in judged}
    if not wanted:
        example = next(iter(scores), None)
        raise DataError(f"{source}: none of its {len(scores)} queries is {known}, such as {example!r}")
    check_known(wanted, judged.values(), source)
    return wanted


def _score_rows(path: Path) -> Iterator[tuple[str, str, float]]:
    rows = parquet_rows(path, {"query_id", "doc_id", "score"}, rows_at_once=ROWS_AT_ONCE)
    for number, row in enumerate(rows, start=1):
        query_id, doc_id, score = row["query_id"], row["doc_id"], row["score"]
        for name in ("query_id", "doc_id"):
            if not isinstance(row[name], str) or not row[name]:
                raise DataError(f"{path}: row {number}: {name!r} must be a string with an id, not {row[name]!r:.80}")
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= HIGHEST:
            where = f"{path}: row {number}, query {query_id!r}, document {doc_id!r}"
            raise DataError(f"{where}: the score is {score!r:.80}, not a finite number")
        yield query_id, doc_id, score


def _trec(path: Path, columns: int, number: Callable[[str], float], needed: str) -> Scores:
    """The fourth column by query and document, as ``number`` reads it; it raises ValueError for another than needed."""
    scores: Scores = {}
    for where, text in parsed_lines(path, text_of):
        parts = text.split()
        if len(parts) != columns:
            raise DataError(f"{where}: {len(parts)} columns where {columns} are needed")
        query_id, _, doc_id, value = parts[:4]
        if doc_id in scores.setdefault(query_id, {}):
            raise DataError(f"{where}: document {doc_id!r} of query {query_id!r} again")
        try:
            scores[query_id][doc_id] = number(value)
        except (ValueError, OverflowError):
            raise DataError(f"{where}: {value!r:.80} is not {needed}") from None
    if not scores:
        raise DataError(f"{path}: no lines in this file")
    return scores


def _minus_rank(text: str) -> float:
    return -float(int(text))


def _grade(text: str) -> float:
    if not math.isfinite(grade := float(text)):
        raise ValueError
    return grade
