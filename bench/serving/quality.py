"""Comparison of the systems' rankings with the checkpoint's in float32, by Kendall's tau and nDCG@10."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.serving.load import Pair
from bench.training.material import text
from trainer.data.records import QueryGroup, Scores
from trainer.measures.metrics import MEASURE, judgments, kendall_tau, per_query
from trainer.scoring.checkpoint import PackedScoringArguments

LARGEST_LOSS = 0.005  # of nDCG@10, as the gate of build_engines.py has it
LEAST_TAU = 0.9  # where nothing is judged


@dataclass(frozen=True)
class Quality:
    """A system against the checkpoint in PyTorch, float32. ``ndcg_difference`` is None where the data has no labels."""

    tau: float
    ndcg_difference: float | None

    @property
    def passes(self) -> bool:
        if self.ndcg_difference is None:
            return self.tau >= LEAST_TAU
        return self.ndcg_difference >= -LARGEST_LOSS

    def __str__(self) -> str:
        difference = "" if self.ndcg_difference is None else f", nDCG@10 {self.ndcg_difference:+.4f}"
        return f"tau {self.tau:.4f}{difference}{'' if self.passes else ' (not equal)'}"


@dataclass(frozen=True)
class Judge:
    """The groups that are scored, and the checkpoint's scores of them."""

    groups: list[QueryGroup]
    reference: Scores

    @classmethod
    def of(cls, checkpoint: str, groups: Sequence[QueryGroup], documents: int, seed: int = 0) -> Judge:
        chosen = choose(groups, documents, seed)
        return cls(chosen, PackedScoringArguments().scorer(checkpoint).score_all(chosen))

    def save(self, path: Path) -> Path:
        """The groups as records, for the gate of our builds."""
        path.write_text("".join(json.dumps(asdict(group)) + "\n" for group in self.groups), encoding="utf-8")
        return path

    def pairs(self) -> list[Pair]:
        return [(group.query, tuple(text(document) for document in group.documents)) for group in self.groups]

    def quality(self, scores: Sequence[Sequence[float]]) -> Quality:
        """``scores[B][N]`` in the order of ``pairs``."""
        found = {
            group.query_id: dict(zip((document.doc_id for document in group.documents), values, strict=True))
            for group, values in zip(self.groups, scores, strict=True)
        }
        expected = (list(self.reference[query_id].values()) for query_id in found)
        taus = [kendall_tau(values, other) for values, other in zip(scores, expected, strict=True)]
        return Quality(float(np.mean(taus)), self._ndcg(found))

    def _ndcg(self, found: Scores) -> float | None:
        labels = judgments(self.groups)
        if not any(grade > 0 for documents in labels.values() for grade in documents.values()):
            return None
        means = [np.mean(list(per_query(labels, scores, MEASURE).values())) for scores in (found, self.reference)]
        return float(means[0] - means[1])


def choose(groups: Sequence[QueryGroup], documents: int, seed: int) -> list[QueryGroup]:
    """About as many documents as are wanted, the same number of each query, judged ones first."""
    draw = random.Random(seed)
    each = max(2, documents // len(groups))
    chosen = []
    for group in groups[: max(1, documents // 2)]:
        mixed = [document for document in group.documents if text(document)]
        draw.shuffle(mixed)
        mixed.sort(key=lambda document: document.label is None)
        if len(mixed) > 1:
            chosen.append(replace(group, documents=tuple(mixed[:each])))
    return chosen
