"""The gate, with engines that are right, damaged, and broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.parity import LIMITS, ParityReport, Yardstick
from engines.quantise.calibration import read_calibration
from engines.records import EngineError, ParityError, Runner
from engines.reference import torch_runner
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PairEncoder
from tests.support.checkpoints import tiny_bert, write_groups
from trainer.checkpoints.load import load_scorer
from trainer.data.records import read_groups


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("parity") / "checkpoint", layers=1)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Runner:
    encoder = PairEncoder.load(checkpoint)
    return torch_runner(load_scorer(checkpoint, encoder), encoder)


@pytest.fixture(scope="module")
def yardstick(checkpoint: Path, model: Runner) -> Yardstick:
    groups = read_groups(write_groups(checkpoint.with_name("dev.jsonl"), documents=12))
    return Yardstick.of(model, PairEncoder.load(checkpoint), groups)


def report(yardstick: Yardstick, model: Runner, change: float = 0.0, scale: float = 1.0) -> ParityReport:
    """A report on the model's own scores, each times ``scale`` and every fourth plus ``change``."""

    def run(pairs: FlatPairs) -> FloatArray:
        scores_N = model(pairs) * np.float32(scale)
        scores_N[::4] += np.float32(change)
        return scores_N

    return yardstick.report(run, "the engine")


def test_equal_scores_pass_in_every_precision(yardstick: Yardstick, model: Runner) -> None:
    equal = report(yardstick, model)
    assert (equal.queries, equal.pairs) == (4, 48)
    assert equal.largest_difference < 1e-6
    assert equal.mean_kendall_tau == pytest.approx(1.0)
    assert equal.ndcg_difference == pytest.approx(0.0, abs=1e-9)
    for precision in LIMITS:
        equal.check(precision)


def test_fp32_is_held_to_its_scores_and_half_to_its_order(yardstick: Yardstick, model: Runner) -> None:
    scaled = report(yardstick, model, scale=1.01)
    assert scaled.mean_kendall_tau == pytest.approx(1.0)
    with pytest.raises(ParityError, match=r"scores differ by up to 0\.0"):
        scaled.check("fp32")
    scaled.check("fp16")


def test_refusal_names_pairs_by_id_and_never_by_text(yardstick: Yardstick, model: Runner) -> None:
    shifted = report(yardstick, model, change=1.0)
    with pytest.raises(ParityError, match="Kendall's tau") as refusal:
        shifted.check("bf16")
    named = [f"{pair.query_id}/{pair.doc_id} by {pair.difference:+.3g}" for pair in shifted.worst]
    assert str(refusal.value).endswith(f"most apart: {', '.join(named)}")
    assert shifted.worst[0].difference == pytest.approx(1.0, abs=1e-5)


def test_loss_of_ndcg_alone_is_refused() -> None:
    worse = ParityReport("the engine", 1, 2, 0.1, 1.0, -0.0051, ())
    with pytest.raises(ParityError, match=r"nDCG@10 differs by -0\.0051 \(limit 0\.005; queries: 1\)"):
        worse.check("fp16")
    replace(worse, ndcg_difference=None).check("fp16")


@pytest.mark.parametrize("precision", LIMITS)
def test_scores_that_are_no_numbers_are_refused(yardstick: Yardstick, model: Runner, precision: str) -> None:
    with pytest.raises(ParityError, match="by up to inf"):
        report(yardstick, model, change=np.nan).check(precision)


def test_without_labels_there_is_no_ndcg(yardstick: Yardstick, model: Runner) -> None:
    assert report(replace(yardstick, qrels={}), model).ndcg_difference is None


def test_calibration_shares_no_query_with_the_judged(checkpoint: Path, tmp_path: Path) -> None:
    encoder = PairEncoder.load(checkpoint)
    judged = read_groups(write_groups(tmp_path / "dev.jsonl"))
    for name in ("q", "c"):  # the same ids, or the same texts under other ids
        path = write_groups(tmp_path / f"{name}.jsonl", name=name)
        with pytest.raises(EngineError, match=f"query '{name}0' of --calibration is in --data too"):
            read_calibration([str(path)], judged, encoder)
    with pytest.raises(EngineError, match="this precision needs --calibration"):
        read_calibration([], judged, encoder)
