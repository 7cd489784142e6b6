"""The gate: an engine against PyTorch in float32 of the same checkpoint, on real pairs.

Each query is scored as the server scores it: its documents packed as one request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from engines.records import ParityError, Runner, in_chunks
from model_repository.tokenizer.pair_encoding import FloatArray, PackedBatch, PairEncoder, unpack
from trainer.collate import encode_group
from trainer.data import QueryGroup, Scores
from trainer.metrics import judgments, kendall_tau, per_query
from trainer.models import PackedScorer

MEASURE = "nDCG@10"
REFERENCE_ROWS = 32
NAMED = 3  # pairs that a refusal names


class Limits(NamedTuple):
    """What a precision may cost: a score (logits), the order within a query, the measure."""

    score: float = np.inf
    tau: float = -1.0
    ndcg: float = np.inf


LIMITS = {
    "fp32": Limits(score=1e-4),
    "bf16": Limits(tau=0.99, ndcg=0.005),
    "fp16": Limits(tau=0.99, ndcg=0.005),
    "fp8": Limits(tau=0.9, ndcg=0.005),
}


@dataclass(frozen=True)
class Difference:
    """One pair's scores apart, engine minus reference (logits; NaN where the engine gave no number)."""

    query_id: str
    doc_id: str
    difference: float


@dataclass(frozen=True)
class ParityReport:
    """How an engine compares; ``ndcg_difference`` is engine minus reference, None without labels."""

    judged: str
    queries: int
    pairs: int
    largest_difference: float
    mean_kendall_tau: float
    ndcg_difference: float | None
    worst: tuple[Difference, ...]

    def check(self, precision: str) -> None:
        """Raises ParityError, which names the pairs that differ most, beyond the precision's limits."""
        limits = LIMITS[precision]
        problems = []
        if not self.largest_difference <= limits.score or not np.isfinite(self.largest_difference):
            problems.append(f"scores differ by up to {self.largest_difference:.3g} (limit {limits.score:g})")
        if not self.mean_kendall_tau >= limits.tau:
            problems.append(f"Kendall's tau is {self.mean_kendall_tau:.4f} (limit {limits.tau:g})")
        if self.ndcg_difference is not None and not abs(self.ndcg_difference) <= limits.ndcg:
            problems.append(f"{MEASURE} differs by {self.ndcg_difference:+.4f} (limit {limits.ndcg:g})")
        if problems:
            pairs = ", ".join(f"{pair.query_id}/{pair.doc_id} by {pair.difference:+.3g}" for pair in self.worst)
            raise ParityError(f"in {precision}, {'; '.join(problems)}; the query/document pairs most apart: {pairs}")


def compare(
    run: Runner, judged: str, model: PreTrainedModel, encoder: PairEncoder, groups: Sequence[QueryGroup]
) -> ParityReport:
    """Score every pair of the groups by ``run`` and by the float32 model."""
    reference = _scores(in_chunks(_torch_runner(model), REFERENCE_ROWS), encoder, groups)
    candidate = _scores(run, encoder, groups)
    apart = sorted(starmap(Difference, _differences(candidate, reference)), key=_size, reverse=True)
    taus = [kendall_tau(list(candidate[query].values()), list(scores.values())) for query, scores in reference.items()]
    return ParityReport(
        judged=judged,
        queries=len(groups),
        pairs=len(apart),
        largest_difference=_size(apart[0]),
        mean_kendall_tau=float(np.mean(taus)),
        ndcg_difference=_ndcg_difference(candidate, reference, judgments(groups)),
        worst=tuple(apart[:NAMED]),
    )


def _torch_runner(model: PreTrainedModel) -> Runner:
    scorer = PackedScorer(model.eval())

    @torch.inference_mode()
    def run(batch: PackedBatch) -> FloatArray:
        scores: FloatArray = scorer(*(torch.from_numpy(array).long() for array in batch[:-1])).numpy()
        return scores

    return run


def _scores(run: Runner, encoder: PairEncoder, groups: Sequence[QueryGroup]) -> Scores:
    scores: Scores = {}
    for group in groups:
        batch = encoder.pack(encode_group(encoder, group.query, group.documents))
        ids = [document.doc_id for document in group.documents]
        scores[group.query_id] = dict(zip(ids, unpack(run(batch), batch.slots).tolist(), strict=True))
    return scores


def _differences(candidate: Scores, reference: Scores) -> Iterator[tuple[str, str, float]]:
    for query_id, documents in reference.items():
        for doc_id, score in documents.items():
            yield query_id, doc_id, candidate[query_id][doc_id] - score


def _size(pair: Difference) -> float:
    return abs(pair.difference) if np.isfinite(pair.difference) else np.inf


def _ndcg_difference(candidate: Scores, reference: Scores, qrels: Scores) -> float | None:
    if not qrels:
        return None
    means = [np.mean(list(per_query(qrels, scores, MEASURE).values())) for scores in (candidate, reference)]
    return float(means[0] - means[1])
