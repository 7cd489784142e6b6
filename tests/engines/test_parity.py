"""The gate, with engines that are right, damaged, and broken."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from transformers import PreTrainedModel

from engines.parity import ParityReport, compare
from engines.records import ParityError, Runner
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PairEncoder
from tests.support.checkpoints import tiny_bert, write_groups
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.records import QueryGroup, read_groups


class Subject(NamedTuple):
    model: PreTrainedModel
    encoder: PairEncoder
    groups: list[QueryGroup]

    def compare(self, run: Runner) -> ParityReport:
        return compare(run, "the engine", self.model, self.encoder, self.groups)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("parity")
    checkpoint = tiny_bert(directory / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    groups = read_groups(write_groups(directory / "dev.jsonl", documents=12))
    return Subject(load_scorer(checkpoint, encoder), encoder, groups)


def shifted(subject: Subject, change: float, scale: float = 1.0) -> Runner:
    """The model's own scores, each times ``scale`` and every fourth plus ``change``."""
    scorer = PackedScorer(subject.model)

    def run(pairs: FlatPairs) -> FloatArray:
        scores_N = scorer.score(subject.encoder.pack(pairs)) * np.float32(scale)
        scores_N[::4] += np.float32(change)
        return scores_N

    return run


def test_equal_scores_pass_in_every_precision(subject: Subject) -> None:
    report = subject.compare(shifted(subject, 0.0))
    assert (report.queries, report.pairs) == (4, 48)
    assert report.largest_difference < 1e-6
    assert report.mean_kendall_tau == pytest.approx(1.0)
    assert report.ndcg_difference == pytest.approx(0.0, abs=1e-9)
    for precision in ("fp32", "bf16", "fp16"):
        report.check(precision)


def test_fp32_is_held_to_its_scores_and_half_to_its_order(subject: Subject) -> None:
    report = subject.compare(shifted(subject, 0.0, scale=1.01))
    assert report.mean_kendall_tau == pytest.approx(1.0)
    with pytest.raises(ParityError, match=r"scores differ by up to 0\.0"):
        report.check("fp32")
    report.check("fp16")


def test_refusal_names_pairs_by_id_and_never_by_text(subject: Subject) -> None:
    report = subject.compare(shifted(subject, 1.0))
    with pytest.raises(ParityError, match="Kendall's tau") as refusal:
        report.check("bf16")
    message = str(refusal.value)
    assert all(f"{pair.query_id}/{pair.doc_id} by {pair.difference:+.3g}" in message for pair in report.worst)
    assert report.worst[0].difference == pytest.approx(1.0, abs=1e-5)
    assert not any(group.query in message for group in subject.groups)


def test_loss_of_ndcg_alone_is_refused() -> None:
    report = ParityReport("the engine", 1, 2, 0.1, 1.0, -0.0051, ())
    with pytest.raises(ParityError, match=r"nDCG@10 differs by -0\.0051"):
        report.check("fp16")
    ParityReport("the engine", 1, 2, 0.1, 1.0, None, ()).check("fp16")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_scores_that_are_no_numbers_are_refused(subject: Subject, precision: str) -> None:
    report = subject.compare(shifted(subject, np.nan))
    with pytest.raises(ParityError, match="by up to inf"):
        report.check(precision)


def test_without_labels_there_is_no_ndcg(subject: Subject) -> None:
    unjudged = [
        QueryGroup(
            group.query_id,
            group.query,
            tuple(
                type(document)(document.doc_id, document.title, document.summary, None, 0)
                for document in group.documents
            ),
        )
        for group in subject.groups
    ]
    report = compare(shifted(subject, 0.0), "the engine", subject.model, subject.encoder, unjudged)
    assert report.ndcg_difference is None
