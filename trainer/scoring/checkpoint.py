"""Scores of whole query groups, by a checkpoint's model or from the order of a run file."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from client.command import say
from model_repository.tokenizer.pair_encoding import IntArray, PackedBatch, PairEncoder, unpack
from trainer.checkpoints.load import Model, PackedScorer, load_scorer, to_device
from trainer.data.pairs import encode_groups
from trainer.data.rankings import best_first, of_known_queries, read_run
from trainer.data.records import DataError, QueryGroup, Scores
from trainer.packed.attention import Kernel, check_kernel, use_kernel
from trainer.scoring.prefetch import prefetched

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Ids = Sequence[tuple[str, str]]  # query_id, doc_id

LESS_MEMORY = "a smaller --rows_per_batch, --precision bf16"
ROWS_PER_PASS = 32  # unless the user says otherwise
BATCHES_PER_PACK = 2  # pairs packed together fill all rows but the last ones; fewer are shared out more evenly
PATIENCE = timedelta(days=14)  # of processes that wait for each other's scores; PyTorch takes up to 24 days


@dataclass
class ScoringArguments:
    """How a checkpoint scores."""

    rows_per_batch: int = field(
        default=ROWS_PER_PASS,
        metadata={"help": "Packed rows of one forward pass, at most; texts, of a model that packs none."},
    )
    precision: Precision = field(
        default="fp32", metadata={"help": "Precision of a model's layers; a score head computes in fp32."}
    )

    def __post_init__(self) -> None:
        if self.rows_per_batch < 1:
            raise DataError("--rows_per_batch must be at least 1")


@dataclass
class PackedScoringArguments(ScoringArguments):
    """How a checkpoint scores packed rows."""

    attention: Kernel = field(
        default="dense", metadata={"help": "Kernel of attention in packed rows; varlen is for NVIDIA GPUs."}
    )

    def scorer(self, checkpoint: str) -> GroupScorer:
        """The checkpoint's model, on this process's accelerator if there is one.

        Raises CheckpointError as ``load_scorer`` does, KernelError for an ``--attention`` that cannot be.
        """
        device = processes_together().device  # each chooses its GPU
        check_kernel(self.attention, device, lowered=self.precision != "fp32", training=False)
        encoder = PairEncoder.load(checkpoint)
        model = load_scorer(checkpoint, encoder)
        use_kernel(model, self.attention, training=False)
        lower_precision(model, PRECISIONS[self.precision])
        return GroupScorer(Path(checkpoint).name, PackedScorer(to_device(model)), encoder, self.rows_per_batch)


def processes_together() -> PartialState:
    """The processes of a command that scores, several under ``torchrun``, which wait for each other's scores."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


class Started(NamedTuple):
    """Pairs whose scores the device may still be computing."""

    ids: Ids
    slots: IntArray  # [N], the place of each pair's score
    scores: list[Tensor]  # one for each forward pass, [its rows, S]


class GroupScorer:
    """A model that scores the documents of many queries, packed together.

    A forward pass has at most ``rows_per_pass`` packed rows.
    """

    identity = None  # the checkpoint's files say which it is

    def __init__(self, name: str, scorer: PackedScorer, encoder: PairEncoder, rows_per_pass: int) -> None:
        self.name, self._scorer, self._encoder, self._rows_per_pass = name, scorer, encoder, rows_per_pass
        self._pairs_per_pack = max(1, BATCHES_PER_PACK * rows_per_pass * encoder.config.slots_per_row // 2)

    def scores(self, groups: Sequence[QueryGroup], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        """``(query_id, doc_id, float32 logit)`` of every pair, in the order of the groups.

        A thread encodes and packs the next pairs meanwhile. A GPU gets its next rows before the last scores are read.
        """
        yield from self._scores(parts(groups, self._pairs_per_pack), bar)

    def score_all(self, groups: Sequence[QueryGroup], quiet: bool = False) -> Scores:
        """The scores of all groups, in every process, with a progress bar unless ``quiet``.

        Processes share out what is packed together: scores do not depend on their number. All must call this.
        """
        processes = PartialState()
        share = share_of(list(parts(groups, self._pairs_per_pack)), processes.process_index, processes.num_processes)
        own: Scores = {group.query_id: {} for part in share for group in part}
        pairs = sum(len(group.documents) for part in share for group in part)
        with progress(self.name, pairs, disable=quiet or not processes.is_main_process) as bar:
            for query_id, doc_id, score in self._scores(share, bar):
                own[query_id][doc_id] = score
        scores = {query_id: documents for each in gather_object([own]) for query_id, documents in each.items()}
        return {group.query_id: scores[group.query_id] for group in groups}

    def _scores(self, packs: Iterable[Sequence[QueryGroup]], bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        started: deque[Started] = deque()
        for ids, packed in prefetched(map(self._packed, packs), ahead=2):
            started.append(Started(ids, packed.slots, self._scorer.passes(packed.rows, self._rows_per_pass)))
            if len(started) > 1:
                yield from self._read(started.popleft(), bar)
        for last in started:
            yield from self._read(last, bar)

    def _packed(self, part: Sequence[QueryGroup]) -> tuple[Ids, PackedBatch]:
        ids = [(group.query_id, document.doc_id) for group in part for document in group.documents]
        return ids, self._encoder.pack(encode_groups(self._encoder, part))

    def _read(self, started: Started, bar: tqdm[NoReturn]) -> Iterator[tuple[str, str, float]]:
        scores = unpack(torch.cat(started.scores).cpu().numpy(), started.slots).tolist()
        yield from named_scores(self.name, started.ids, scores)
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
    return tqdm(total=pairs, desc=Path(name).name, **{"unit": "pair", **settings})


def run_scores(paths: Sequence[str], groups: Sequence[QueryGroup]) -> Iterator[tuple[str, str, float]]:
    """``-log(rank)`` of every pair of a group that a run ranks.

    Documents that the first run leaves out follow those that it ranks, in the order of the next one. A line says how
    many queries of a run are in no group. Raises DataError for a document that its group has not.
    """
    ranked: dict[str, dict[str, None]] = {}  # by query its documents, the best first
    for path in paths:
        read = read_run(path)
        ranking = of_known_queries(read, groups, path)
        if others := len(read) - len(ranking):
            say(f"{path}: {others:,} of its {len(read):,} queries are not in the data: they are left out")
        for query_id, documents in ranking.items():
            ranked.setdefault(query_id, {}).update(dict.fromkeys(best_first(documents)))  # known ones keep their place
    for query_id, order in ranked.items():
        for rank, doc_id in enumerate(order, start=1):
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


def share_of(packs: Sequence[list[QueryGroup]], process: int, processes: int) -> list[list[QueryGroup]]:
    """Every so many-th of the packs. Each process gets as many, so that some may score the last one again."""
    rounds = -(-len(packs) // processes)
    return [packs[min(place, len(packs) - 1)] for place in range(process, rounds * processes, processes)]
