"""The gate compares an engine with its checkpoint in PyTorch, in float32, on real pairs.

Each query is scored as the server scores it: its documents are one request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel

from engines.records import ParityError, Runner
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, Layout, PairEncoder
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup, Scores
from trainer.measures.metrics import MEASURE, judgments, kendall_tau, per_query

NAMED = 3  # pairs that a refusal names


class Limits(NamedTuple):
    """The most that a precision may cost in a score (logits), in the order within a query, and in the measure."""

    score: float = np.inf
    tau: float = -1.0
    ndcg: float = np.inf


LIMITS = {
    "fp32": Limits(score=1e-4),
    "bf16": Limits(tau=0.99, ndcg=0.005),
    "fp16": Limits(tau=0.99, ndcg=0.005),
    "int8": Limits(tau=0.9, ndcg=0.005),
    "fp8": Limits(tau=0.9, ndcg=0.005),
}


class Request(NamedTuple):
    """A query's documents, encoded as the server encodes them."""

    query_id: str
    doc_ids: tuple[str, ...]
    pairs: FlatPairs


@dataclass(frozen=True)
class Difference:
    """The difference of a pair's scores, engine minus reference, in logits; NaN where the engine gave no number."""

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

    def excess(self, precision: str) -> float:
        """The largest loss as a share of the precision's limit; up to 1 passes ``check``."""
        limits = LIMITS[precision]
        if not np.isfinite([self.largest_difference, self.mean_kendall_tau]).all():
            return float("inf")
        losses = [self.largest_difference / limits.score, (1 - self.mean_kendall_tau) / (1 - limits.tau)]
        if self.ndcg_difference is not None:
            losses.append(abs(self.ndcg_difference) / limits.ndcg)
        return max(losses)

    def check(self, precision: str) -> None:
        """Raises ParityError beyond the precision's limits; it names the pairs that differ most."""
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


@dataclass(frozen=True)
class Yardstick:
    """The measure of engines: requests, a reference's scores of them, and the labels.

    layout: how the requests lie in rows, for engines that take packed rows.
    """

    requests: tuple[Request, ...]
    scores: Scores
    qrels: Scores
    layout: Layout

    @classmethod
    def of(cls, reference: Runner, encoder: PairEncoder, groups: Sequence[QueryGroup]) -> Yardstick:
        """Every pair of the groups, scored by the reference."""
        requests = tuple(_requests(encoder, groups))
        return cls(requests, _scores(reference, requests), judgments(groups), encoder.config.layout)

    def ndcg(self) -> float | None:
        """The measure of the reference's own scores; None without labels."""
        return _ndcg(self.scores, self.qrels) if self.qrels else None

    def report(self, run: Runner, judged: str) -> ParityReport:
        """Compare the scores of ``run`` for the same requests."""
        candidate = _scores(run, self.requests)
        apart = sorted(starmap(Difference, _differences(candidate, self.scores)), key=_size, reverse=True)
        taus = [
            kendall_tau(list(candidate[query].values()), list(scores.values())) for query, scores in self.scores.items()
        ]
        return ParityReport(
            judged=judged,
            queries=len(self.requests),
            pairs=len(apart),
            largest_difference=_size(apart[0]),
            mean_kendall_tau=float(np.mean(taus)),
            ndcg_difference=_ndcg_difference(candidate, self.scores, self.qrels),
            worst=tuple(apart[:NAMED]),
        )


def compare(
    run: Runner, judged: str, model: PreTrainedModel, encoder: PairEncoder, groups: Sequence[QueryGroup]
) -> ParityReport:
    """Score every pair of the groups by ``run`` and by the float32 model."""
    return Yardstick.of(torch_runner(model, encoder), encoder, groups).report(run, judged)


def torch_runner(model: PreTrainedModel, encoder: PairEncoder) -> Runner:
    """The checkpoint in PyTorch, which the gate compares with."""
    scorer = PackedScorer(model.eval())

    def run(pairs: FlatPairs) -> FloatArray:
        return scorer.score(encoder.pack(pairs))

    return run


def _requests(encoder: PairEncoder, groups: Sequence[QueryGroup]) -> Iterator[Request]:
    for group in groups:
        doc_ids = tuple(document.doc_id for document in group.documents)
        yield Request(group.query_id, doc_ids, encode_groups(encoder, [group]))


def _scores(run: Runner, requests: Sequence[Request]) -> Scores:
    return {query_id: dict(zip(doc_ids, run(pairs).tolist(), strict=True)) for query_id, doc_ids, pairs in requests}


def _differences(candidate: Scores, reference: Scores) -> Iterator[tuple[str, str, float]]:
    for query_id, documents in reference.items():
        for doc_id, score in documents.items():
            yield query_id, doc_id, candidate[query_id][doc_id] - score


def _size(pair: Difference) -> float:
    return abs(pair.difference) if np.isfinite(pair.difference) else np.inf


def _ndcg_difference(candidate: Scores, reference: Scores, qrels: Scores) -> float | None:
    if not qrels:
        return None
    return _ndcg(candidate, qrels) - _ndcg(reference, qrels)


def _ndcg(scores: Scores, qrels: Scores) -> float:
    return float(np.mean(list(per_query(qrels, scores, MEASURE).values())))
