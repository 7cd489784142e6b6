"""The gate compares an engine with its checkpoint in PyTorch, in float32, on real pairs.

Each query is scored as the server scores it: its documents are one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engines.records import ParityError, Runner
from model_repository.tokenizer.pair_encoding import FlatPairs, Layout, PairEncoder
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

    def losses(self, precision: str) -> dict[str, float]:
        """The losses in words, each with its share of the precision's limit; up to 1 passes."""
        limits = LIMITS[precision]
        losses = {
            f"scores differ by up to {self.largest_difference:.3g} (limit {limits.score:g})": (
                self.largest_difference / limits.score
            ),
            f"Kendall's tau is {self.mean_kendall_tau:.4f} (limit {limits.tau:g})": (
                (1 - self.mean_kendall_tau) / (1 - limits.tau)
            ),
        }
        if self.ndcg_difference is not None:
            words = f"{MEASURE} differs by {self.ndcg_difference:+.4f} (limit {limits.ndcg:g}; queries: {self.queries})"
            losses[words] = abs(self.ndcg_difference) / limits.ndcg
        return {words: share if np.isfinite(share) else np.inf for words, share in losses.items()}

    def check(self, precision: str) -> None:
        """Raises ParityError beyond the precision's limits; it names the pairs that differ most."""
        if problems := self.problems(precision):
            pairs = ", ".join(f"{pair.query_id}/{pair.doc_id} by {pair.difference:+.3g}" for pair in self.worst)
            raise ParityError(f"{problems}; the query/document pairs most apart: {pairs}")

    def problems(self, precision: str) -> str:
        """Say which of the precision's limits are exceeded; "" for none."""
        beyond = [words for words, share in self.losses(precision).items() if share > 1]
        return f"in {precision}, {'; '.join(beyond)}" if beyond else ""


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
        requests = tuple(
            Request(
                group.query_id,
                tuple(document.doc_id for document in group.documents),
                encode_groups(encoder, [group]),
            )
            for group in groups
        )
        return cls(requests, _scores(reference, requests), judgments(groups), encoder.config.layout)

    def ndcg(self, scores: Scores | None = None) -> float | None:
        """The measure of some scores, or of the reference's own; None without labels."""
        if not self.qrels:
            return None
        return float(np.mean(list(per_query(self.qrels, scores or self.scores, MEASURE).values())))

    def report(self, run: Runner, judged: str) -> ParityReport:
        """Compare the scores of ``run`` for the same requests."""
        candidate = _scores(run, self.requests)
        differences = [
            Difference(query_id, doc_id, candidate[query_id][doc_id] - score)
            for query_id, documents in self.scores.items()
            for doc_id, score in documents.items()
        ]
        apart = sorted(differences, key=_size, reverse=True)
        taus = [
            kendall_tau(list(candidate[query].values()), list(scores.values())) for query, scores in self.scores.items()
        ]
        before, after = self.ndcg(), self.ndcg(candidate)
        return ParityReport(
            judged=judged,
            queries=len(self.requests),
            pairs=len(apart),
            largest_difference=_size(apart[0]),
            mean_kendall_tau=float(np.mean(taus)),
            ndcg_difference=None if before is None or after is None else after - before,
            worst=tuple(apart[:NAMED]),
        )


def _scores(run: Runner, requests: Sequence[Request]) -> Scores:
    return {query_id: dict(zip(doc_ids, run(pairs).tolist(), strict=True)) for query_id, doc_ids, pairs in requests}


def _size(pair: Difference) -> float:
    return abs(pair.difference) if np.isfinite(pair.difference) else np.inf
