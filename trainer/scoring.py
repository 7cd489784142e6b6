"""Scores of whole query groups: by a checkpoint's model, or from the order of a run file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.collate import encode_group
from trainer.data import DataError, QueryGroup, check_known, read_run
from trainer.models import PackedScorer, load_scorer, to_device


def model_scores(
    checkpoint: str, groups: Sequence[QueryGroup], rows_per_batch: int = 32
) -> Iterator[tuple[str, str, float]]:
    """``(query_id, doc_id, float32 logit)`` of every pair, in the order of the groups."""
    encoder = PairEncoder.load(checkpoint)
    scorer = PackedScorer(to_device(load_scorer(checkpoint, encoder)))
    with tqdm(total=sum(len(group.documents) for group in groups), unit="pair", desc=Path(checkpoint).name) as bar:
        for part in _parts(groups, rows_per_batch * encoder.config.slots_per_row // 2):
            pairs = [pair for group in part for pair in encode_group(encoder, group.query, group.documents)]
            ids = [(group.query_id, document.doc_id) for group in part for document in group.documents]
            for (query_id, doc_id), score in zip(ids, scorer.score(encoder.pack(pairs)).tolist(), strict=True):
                if not math.isfinite(score):
                    raise DataError(f"{checkpoint}: query {query_id!r}, document {doc_id!r}: the score is {score}")
                yield query_id, doc_id, score
            bar.update(len(pairs))


def run_scores(path: str, groups: Sequence[QueryGroup]) -> Iterator[tuple[str, str, float]]:
    """``-log(rank)`` of every pair that the run ranks; raises DataError for pairs that no group has."""
    ranking = read_run(path)
    check_known(ranking, groups, path)
    for query_id, documents in ranking.items():
        for rank, doc_id in enumerate(sorted(documents, key=documents.__getitem__, reverse=True), start=1):
            yield query_id, doc_id, -math.log(rank)


def _parts(groups: Sequence[QueryGroup], pairs_per_part: int) -> Iterator[list[QueryGroup]]:
    part: list[QueryGroup] = []
    for group in groups:
        part.append(group)
        if sum(len(kept.documents) for kept in part) >= pairs_per_part:
            yield part
            part = []
    if part:
        yield part
