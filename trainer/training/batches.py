"""Records to tensors: the groups of a training step become one packed batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from model_repository.tokenizer.pair_encoding import INPUTS, PackedBatch, PairEncoder
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup
from trainer.packed.forward import IGNORED

SKIPPED = None  # in place of a group that the run was trained on before it was interrupted


@dataclass(frozen=True, slots=True)
class TrainingGroup(QueryGroup):
    """One query's pairs as a step sees them."""

    targets: tuple[float, ...]  # labels, teacher scores or click weights, one for each document
    labels: tuple[float, ...] = ()  # where the objective wants both; NaN for pairs that nobody judged


class RankingBatch(TypedDict):
    """A step of ranking; a dict, because Trainer moves only those to its device."""

    packed: dict[str, Tensor]  # the model's inputs, [R, L] and [R, S]
    slots: Tensor  # [N]
    targets: Tensor  # [N]
    groups: Tensor  # [N], which query of the step a pair belongs to
    labels: Tensor  # [N] as the groups have them, or [0]
    weights: Tensor  # [B], of the queries
    queries: list[str]  # ids, to name in errors


class LanguageBatch(TypedDict):
    """A step of continued pre-training."""

    packed: dict[str, Tensor]
    labels: Tensor  # [R, L], the document's tokens and the end token; IGNORED elsewhere
    weights: Tensor  # [R, L], the weight of the token's query and document
    queries: list[str]  # ids, to name in errors


def draw_documents(group: TrainingGroup, count: int | None, seed: int, epoch: int, place: int) -> TrainingGroup:
    """The group with at most ``count`` of its documents.

    One of those with the highest target is always drawn, and one with a lower target: without two that differ, a query
    teaches no order. Only the seed, the epoch and the group's place decide which: a run that resumes draws the same.
    """
    if count is None or len(group.documents) <= count:
        return group
    draw = np.random.default_rng((seed, epoch, place))
    order = draw.permutation(len(group.documents))
    targets = np.array(group.targets)[order]
    best = int(targets.argmax())
    lower = int((targets < targets[best]).argmax())  # the best one, at 0, where all are alike
    chosen = sorted(list(dict.fromkeys([order[best], order[lower], *order]))[:count])
    documents, scores, labels = (
        tuple(values[place] for place in chosen) if values else ()
        for values in (group.documents, group.targets, group.labels)
    )
    return replace(group, documents=documents, targets=scores, labels=labels)


@dataclass(frozen=True)
class RankingCollator:
    """Makes one packed batch of the groups of a step."""

    encoder: PairEncoder

    def __call__(self, batch: Sequence[TrainingGroup]) -> RankingBatch:
        packed = self.encoder.pack(encode_groups(self.encoder, batch))
        return {
            "packed": _model_inputs(packed),
            "slots": torch.from_numpy(packed.slots).long(),
            "targets": torch.tensor([target for group in batch for target in group.targets]),
            "groups": torch.tensor([index for index, group in enumerate(batch) for _ in group.targets]),
            "labels": torch.tensor([label for group in batch for label in group.labels]),
            "weights": torch.tensor([group.weight for group in batch]),
            "queries": [group.query_id for group in batch],
        }


@dataclass(frozen=True)
class LanguageCollator:
    """Makes the inputs of continued pre-training of clicked pairs: only the document's side bears a loss.

    Its end token bears one only where the document ends there, since a model that learns from a cut one stops early,
    and where there is a document before it.
    """

    encoder: PairEncoder

    def __call__(self, batch: Sequence[TrainingGroup]) -> LanguageBatch:
        pairs = encode_groups(self.encoder, batch)
        packed = self.encoder.pack(pairs)
        weights = [group.weight * target for group in batch for target in group.targets]
        labels_RL = np.full(packed.input_ids.shape, IGNORED, dtype=np.int64)
        weights_RL = np.zeros(packed.input_ids.shape, dtype=np.float32)
        for pair, weight, start in zip(pairs, weights, packed.starts.tolist(), strict=True):
            length = len(pair.token_ids)
            is_cut = pair.truncated and length == self.encoder.config.max_pair_tokens
            end = length - 1 if is_cut or length - pair.document_start == 1 else length
            document = slice(start + pair.document_start, start + end)
            labels_RL.reshape(-1)[document] = pair.token_ids[pair.document_start : end]
            weights_RL.reshape(-1)[document] = weight
        return {
            "packed": _model_inputs(packed),
            "labels": torch.from_numpy(labels_RL),
            "weights": torch.from_numpy(weights_RL),
            "queries": [group.query_id for group in batch],
        }


Collate = Callable[[Sequence[TrainingGroup]], RankingBatch | LanguageBatch]


@dataclass(frozen=True)
class PassOver:
    """Collates nothing for the steps that the run was trained on before it was interrupted."""

    collate: Collate

    def __call__(self, batch: Sequence[TrainingGroup | None]) -> RankingBatch | LanguageBatch | dict[str, Any]:
        groups = [group for group in batch if group is not SKIPPED]
        return self.collate(groups) if groups else {}


def _model_inputs(packed: PackedBatch) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).long() for name, array in zip(INPUTS, packed.rows, strict=True)}
