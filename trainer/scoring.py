"""Scores of whole query groups: by a checkpoint's model, or from the order of a run file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.collate import encode_group
from trainer.data import DataError, QueryGroup, check_known, read_run
from trainer.models import PackedScorer, load_scorer, to_device


class GroupScorer:
    """The model of a checkpoint, on the accelerator where there is one, scoring whole groups.

    Raises CheckpointError for what is no trained scorer.
    """

    def __init__(self, checkpoint: str, rows_per_batch: int = 32) -> None:
        self._checkpoint, self._encoder = checkpoint, PairEncoder.load(checkpoint)
        self._scorer = PackedScorer(to_device(load_scorer(checkpoint, self._encoder)))
        self._pairs_per_batch = rows_per_batch * self._encoder.config.slots_per_row // 2

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, float32 logit)`` of every pair, in the order of the groups."""
        for part in parts(groups, self._pairs_per_batch):
            pairs = [pair for group in part for pair in encode_group(self._encoder, group.query, group.documents)]
            ids = [(group.query_id, document.doc_id) for group in part for document in group.documents]
            scores = self._scorer.score(self._encoder.pack(pairs)).tolist()
            for (query_id, doc_id), score in zip(ids, scores, strict=True):
                if not math.isfinite(score):
                    raise DataError(
                        f"{self._checkpoint}: query {query_id!r}, document {doc_id!r}: the score is {score}"
                    )
                yield query_id, doc_id, score
            bar.update(len(pairs))


def model_scores(checkpoint: str, groups: Sequence[QueryGroup]) -> Iterator[tuple[str, str, float]]:
    """The scores of all groups, with a progress bar."""
    scorer = GroupScorer(checkpoint)
    with progress(checkpoint, groups) as bar:
        yield from scorer.scores(groups, bar)


def progress(name: str, groups: Sequence[QueryGroup], **settings: Any) -> tqdm[NoReturn]:
    return tqdm(total=sum(len(group.documents) for group in groups), unit="pair", desc=Path(name).name, **settings)


def run_scores(path: str, groups: Sequence[QueryGroup]) -> Iterator[tuple[str, str, float]]:
    """``-log(rank)`` of every pair that the run ranks; raises DataError for pairs that no group has."""
    ranking = read_run(path)
    check_known(ranking, groups, path)
    for query_id, documents in ranking.items():
        for rank, doc_id in enumerate(sorted(documents, key=documents.__getitem__, reverse=True), start=1):
            yield query_id, doc_id, -math.log(rank)


def parts(groups: Sequence[QueryGroup], pairs_per_part: int) -> Iterator[list[QueryGroup]]:
    """Groups in order, in lists of at least ``pairs_per_part`` pairs (the last may have fewer)."""
    part: list[QueryGroup] = []
    for group in groups:
        part.append(group)
        if sum(len(kept.documents) for kept in part) >= pairs_per_part:
            yield part
            part = []
    if part:
        yield part
