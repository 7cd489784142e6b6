"""A first pass over files, which finds faults and how many pairs each query has. It needs no PyTorch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from trainer.cluster import Row, checked, told
from trainer.data.identities import identity, repeated
from trainer.data.records import iter_groups, refuse_repeated
from trainer.storage import fetched


@dataclass(frozen=True)
class Survey:
    """The files in order, the queries of each, and the pairs of each query."""

    files: Sequence[str]
    queries: Sequence[int]
    pairs: array[int]

    @classmethod
    def of(cls, files: Sequence[str], map_all: Callable[[list[Row]], Iterable[Row]]) -> Survey:
        """``map_all`` has ``surveyed`` of rows, in any order, perhaps from other machines.

        Raises DataError for a query that comes twice, and DisRankerError as ``checked`` does.
        """
        found = map_all([{"place": place, "file": file} for place, file in enumerate(files)])
        rows = sorted(map(checked, found), key=lambda row: int(row["place"]))
        identities, pairs = array("Q"), array("I")
        for row in rows:
            identities.frombytes(row["identities"])
            pairs.frombytes(row["pairs"])
        if repeated(identities):
            refuse_repeated(identities, [fetched(file, ()) for file in files])
        return cls(files, [len(row["pairs"]) // pairs.itemsize for row in rows], pairs)

    def parts(self, first: int, last: int) -> Iterator[tuple[str, int, int]]:
        """Each file that has any of the queries from ``first`` up to ``last``, with their places in it."""
        places = pairwise(accumulate(self.queries, initial=0))
        for file, (begin, end) in zip(self.files, places, strict=True):
            if max(first, begin) < min(last, end):
                yield file, max(first, begin) - begin, min(last, end) - begin


def surveyed(row: Row) -> dict[str, Any]:
    """The queries and pairs of a row's file as bytes, or the fault."""
    return told(lambda: {"place": row["place"], **_read(fetched(row["file"], ()))})


def _read(file: str) -> dict[str, bytes]:
    identities, pairs = array("Q"), array("I")
    for group in iter_groups(file):
        identities.append(identity(group.query_id))
        pairs.append(len(group.documents))
    return {"identities": identities.tobytes(), "pairs": pairs.tobytes()}
