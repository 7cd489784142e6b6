"""Scores of whole query groups, by a checkpoint's model or from the order of a run file."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_repository.tokenizer.pair_encoding import IntArray, PackedBatch, PairEncoder, chunks, unpack
from trainer.checkpoints.load import Model, PackedScorer, load_scorer, to_device
from trainer.data.pairs import encode_groups
from trainer.data.rankings import check_known, read_run
from trainer.data.records import DataError, QueryGroup, Scores
from trainer.scoring.prefetch import prefetched

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Ids = Sequence[tuple[str, str]]  # query_id, doc_id

BATCHES_PER_PACK = 4  # pairs packed together fill all rows but the last ones


class Started(NamedTuple):
    """Pairs whose scores the device may still be computing."""

    ids: Ids
    slots: IntArray  # [N], the place of each pair's score
    scores: list[Tensor]  # one for each forward pass, [its rows, S]


class GroupScorer:
    """The model of a checkpoint, on the accelerator if there is one.

    A forward pass has at most ``rows_per_batch`` packed rows. ``precision`` is that of the layers.
    Raises CheckpointError for what is not a trained scorer.
    """

    def __init__(self, checkpoint: str, rows_per_batch: int = 32, precision: torch.dtype = torch.float32) -> None:
        self._checkpoint, self._encoder = checkpoint, PairEncoder.load(checkpoint)
        self.name, self.identity = Path(checkpoint).name, None  # the checkpoint's files say which it is
        model = load_scorer(checkpoint, self._encoder)
        lower_precision(model, precision)
        self._scorer = PackedScorer(to_device(model))
        self._rows_per_batch = rows_per_batch
        self._pairs_per_pack = BATCHES_PER_PACK * rows_per_batch * self._encoder.config.slots_per_row // 2

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, float32 logit)`` of every pair, in the order of the groups.

        A thread encodes and packs the next pairs meanwhile. A GPU gets its next rows before the last scores are read.
        """
        started: deque[Started] = deque()
        for ids, packed in prefetched(self._packed(groups), ahead=2):
            started.append(Started(ids, packed.slots, self._start(packed)))
            if len(started) > 1:
                yield from self._read(started.popleft(), bar)
        for last in started:
            yield from self._read(last, bar)

    def score_all(self, groups: Sequence[QueryGroup]) -> Scores:
        """The scores of all groups, with a progress bar."""
        scores: Scores = {group.query_id: {} for group in groups}
        with progress(self._checkpoint, sum(len(group.documents) for group in groups)) as bar:
            for query_id, doc_id, score in self.scores(groups, bar):
                scores[query_id][doc_id] = score
        return scores

    def _packed(self, groups: Sequence[QueryGroup]) -> Iterator[tuple[Ids, PackedBatch]]:
        for part in parts(groups, self._pairs_per_pack):
            ids = [(group.query_id, document.doc_id) for group in part for document in group.documents]
            yield ids, self._encoder.pack(encode_groups(self._encoder, part))

    def _start(self, packed: PackedBatch) -> list[Tensor]:
        return [self._scorer.start(rows) for rows in chunks(packed.rows, self._rows_per_batch)]

    def _read(self, started: Started, bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        scores = unpack(torch.cat(started.scores).cpu().numpy(), started.slots).tolist()
        yield from named_scores(self._checkpoint, started.ids, scores)
        bar.update(len(scores))


def named_scores(source: str, ids: Ids, scores: Sequence[float]) -> Iterator[tuple[str, str, float]]:
    """Each score with its ids. Raises DataError, which names the pair, for a score that is not a finite number."""
    for (query_id, doc_id), score in zip(ids, scores, strict=True):
        if not math.isfinite(score):
            raise DataError(f"{source}: query {query_id!r}, document {doc_id!r}: the score is {score}")
        yield query_id, doc_id, score


def lower_precision(model: Model, precision: torch.dtype) -> None:
    """Bring the layers to ``precision``; the score head stays in float32, in which scores do not tie."""
    model.base_model.to(precision)
    if isinstance(pooler := getattr(model.base_model, "pooler", None), nn.Module):
        pooler.float()  # a part of the head; the body calls it too
        pooler.register_forward_pre_hook(lambda _, states: tuple(state.float() for state in states))


def progress(name: str, pairs: int, **settings: Any) -> tqdm[NoReturn]:
    return tqdm(total=pairs, unit="pair", desc=Path(name).name, **settings)


def run_scores(path: str, groups: Sequence[QueryGroup]) -> Iterator[tuple[str, str, float]]:
    """``-log(rank)`` of every pair that the run ranks; raises DataError for pairs that no group has."""
    ranking = read_run(path)
    check_known(ranking, groups, path)
    for query_id, documents in ranking.items():
        for rank, doc_id in enumerate(sorted(documents, key=documents.__getitem__, reverse=True), start=1):
            yield query_id, doc_id, -math.log(rank)


def parts(groups: Iterable[QueryGroup], pairs_per_part: int) -> Iterator[list[QueryGroup]]:
    """Groups in order, in lists of at least ``pairs_per_part`` pairs (the last may have fewer)."""
    part: list[QueryGroup] = []
    pairs = 0
    for group in groups:
        part.append(group)
        pairs += len(group.documents)
        if pairs >= pairs_per_part:
            yield part
            part, pairs = [], 0
    if part:
        yield part
