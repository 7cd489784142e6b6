"""The serving bench for GPUs, tried on a CPU with a tiny model: every item, and what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serving_gpu.__main__ import GOALS, items_of, main
from bench.serving_gpu.engine import request
from bench.serving_gpu.sizes import FULL, QUICK
from trainer.measures.costs import Work, flops_per_token


def test_a_run_measures_every_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    assert main(["--device", "cpu", "--quick", "--output", str(output)]) == 0, capsys.readouterr().err
    saved = json.loads(output.read_text())
    items = saved["items"]
    assert set(items) == set(items_of(QUICK))
    absent = {name for name, item in items.items() if item["outcome"] == "absent"}
    assert absent == {"engine/tiny/compiled", "engine/tiny/graphs", "attention/tiny/flex", "attention/tiny/varlen"}
    assert {item["outcome"] for name, item in items.items() if name not in absent} == {"measured"}
    assert saved["commands"][0].startswith("python -m bench.serving_gpu --device cpu")

    asked, model = request(QUICK.models["tiny"], QUICK.scoring_rows), QUICK.models["tiny"]
    work = Work(False, QUICK.scoring_rows, model.row_lengths[0])
    for name in ("engine/tiny/eager", "path/tiny/known", "path/tiny/text"):
        figures, per_token = items[name], flops_per_token(model.shape(causal=False), work)
        assert figures["details"]["documents"] == len(asked.pairs)
        assert figures["tflops"]["high"] * 1e12 == pytest.approx(figures["tokens_per_second"]["high"] * per_token)
        assert saved["shares_of_ceiling"][name] > 0
    assert sum(items["kernels/tiny"]["details"].values()) == pytest.approx(1, abs=0.5)
    assert items["attention/tiny/sdpa"]["milliseconds"]["median"] > 0


@pytest.mark.parametrize("name", FULL.models)
def test_a_request_fills_its_rows(name: str) -> None:
    model = FULL.models[name]
    batch = request(model, FULL.scoring_rows).batch
    assert 0.9 * FULL.scoring_rows <= len(batch.input_ids) <= FULL.scoring_rows
    tokens = (batch.segment_ids > 0).sum()
    assert tokens / batch.segment_ids.size > 0.8
    assert tokens / len(batch.slots) == pytest.approx(model.pair_tokens, rel=0.1)


def test_goals_are_of_items_that_there_are() -> None:
    assert all(any(item.startswith(name) for item in items_of(FULL)) for name in GOALS)
