"""Packed rows of queries that look like traffic, from which the ranges of activations are read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.records import EngineError
from model_repository.tokenizer.pair_encoding import INPUTS, IntArray, PairEncoder
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup, read_groups

MOST_ROWS = 96
MOST_DOCUMENTS = 100  # of a query; a request may well have as many

Row = dict[str, IntArray]  # one row, [1, L] or [1, S], by the names of INPUTS


@dataclass(frozen=True)
class Calibration:
    """Rows, one by one, and the number of queries that they come from."""

    rows: tuple[Row, ...]
    queries: int


def read_calibration(paths: Sequence[str], judged: Sequence[QueryGroup], encoder: PairEncoder) -> Calibration:
    """At most ``MOST_ROWS`` rows of the files' queries, packed as served, evenly from the queries.

    Raises EngineError without files, and for a query that the engine will be judged on, by id or by text: ranges that
    were read from the judged pairs would tell nothing about others.
    """
    if not paths:
        raise EngineError(
            "this precision needs --calibration: queries with documents that look like traffic, labels or not"
        )
    groups = read_groups(*paths)
    ids, texts = {group.query_id for group in judged}, {group.query for group in judged}
    for group in groups:
        if group.query_id in ids or group.query in texts:
            raise EngineError(f"query {group.query_id!r} of --calibration is in --data too; no query may be in both")
    draw = random.Random(0)
    draw.shuffle(groups)
    chosen = groups[:MOST_ROWS]
    of_queries = [_rows(group, encoder, draw) for group in chosen]
    rounds = range(max(len(rows) for rows in of_queries))
    rows = [rows[place] for place in rounds for rows in of_queries if place < len(rows)]
    return Calibration(tuple(rows[:MOST_ROWS]), len(chosen))


def _rows(group: QueryGroup, encoder: PairEncoder, draw: random.Random) -> list[Row]:
    documents = draw.sample(group.documents, min(len(group.documents), MOST_DOCUMENTS))
    batch = encoder.pack(encode_groups(encoder, [replace(group, documents=tuple(documents))]))
    order = draw.sample(range(len(batch.input_ids)), len(batch.input_ids))  # the packer puts long pairs first
    return [{name: array[row : row + 1] for name, array in zip(INPUTS, batch.rows, strict=True)} for row in order]
