"""The GPU bench, tried on a processor with tiny models: every item, and the figures that it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.gpu import kernels, serving, training
from bench.gpu.__main__ import GOALS, items_of, main
from bench.gpu.kernels import drawn, full_rows, kernel_of
from bench.gpu.records import AbsentError, Machine, Result, Timing
from bench.gpu.sizes import DOCUMENTS, FULL, QUICK
from bench.gpu.training import Training, built, figures, taught, train
from bench.report import Spread
from trainer.data.pairs import encode_groups
from trainer.measures.costs import Work, flops_per_token
from trainer.packed.attention import Visible
from trainer.packed.forward import IGNORED
from trainer.scoring.memory import OutOfMemoryError
from trainer.training.batches import LanguageCollator

# PEFT asks for an attribute by the name that transformers is giving up, and the bench uses the name of a flag that
# older versions know too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
CPU = Machine.of("cpu")
LLAMA, BERT = QUICK.trained["7b"], QUICK.trained["bert6"]


def run(output: Path, *flags: str) -> int:
    return main(["--device", "cpu", "--quick", "--output", str(output), *flags])


def read(output: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(output.read_text())
    return saved


KINDS = ("ceiling/", "engine/", "path/", "kernels/", "cpt/7b/lora/", "rank-sft/7b/full/", "score/",
         "distill/bert6/rows-", "attention/")  # fmt: skip


def test_a_run_measures_every_item_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "gpu.json"
    assert run(output, "--minutes", "0") == 0
    assert not output.exists()
    assert run(output, "--only", "ceiling") == 0
    ceilings = read(output)["items"]
    assert set(ceilings) == {name for name in items_of(QUICK) if name.startswith("ceiling/")}

    assert run(output, "--only", *KINDS) == 0
    whole = read(output)
    assert set(whole["items"]) == {name for name in items_of(QUICK) if name.startswith(KINDS)}
    assert {name: whole["items"][name] for name in ceilings} == ceilings
    for name, item in whole["items"].items():
        if name.endswith(("/flex", "/varlen", "/compiled", "/graphs", "/tensorrt", "/tensorrt_rtx")):
            assert item["outcome"] == "absent" and item["reason"]
        else:
            assert item["outcome"] == "measured", item["reason"]
            assert (whole["shares_of_ceiling"].get(name, 0) > 0) == (not name.startswith(("attention/", "kernels/")))
    assert whole["setting"]["torch"] == torch.__version__
    assert [command.partition("gpu.json")[2] for command in whole["commands"]] == [
        " --only ceiling",
        f" --only {' '.join(KINDS)}",
    ]
    assert "cpt/7b/lora" in capsys.readouterr().out
    _check_serving(whole["items"])

    assert run(output, "--only", *KINDS) == 0
    assert read(output)["items"] == whole["items"]


def _check_serving(items: dict[str, Any]) -> None:
    model = QUICK.served["tiny"]
    asked = serving.request(model, QUICK.scoring_rows)
    per_token = flops_per_token(model.shape(), Work(False, QUICK.scoring_rows, model.row_lengths[0]))
    for name in ("engine/tiny/eager", "path/tiny/known", "path/tiny/text"):
        item = items[name]
        assert item["details"]["documents"] == len(asked.pairs)
        assert item["tflops"]["high"] * 1e12 == pytest.approx(item["tokens_per_second"]["high"] * per_token)
    assert sum(items["kernels/tiny"]["details"].values()) == pytest.approx(1, abs=0.5)


def test_bad_flags_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "gpu.json", "--only", "nothing") == 2
    assert "no item begins so" in capsys.readouterr().err
    assert main(["--device", "cpu", "--output", str(tmp_path / "gpu.json")]) == 2
    assert "--quick" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"setting": {"device": "another GPU"}, "commands": [], "items": {}}')
    assert run(tmp_path / "other.json") == 2
    assert "another --output" in capsys.readouterr().err
    (tmp_path / "strange.json").write_text("[]")
    assert run(tmp_path / "strange.json") == 2
    assert "remove the file" in capsys.readouterr().err


def test_what_fails_is_tried_again_but_not_what_needs_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> Result:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("bench.gpu.__main__.QUICK", replace(QUICK, square=2**30))
    monkeypatch.setattr(kernels, "own_matrices", breaks)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "gpu.json", "--only", "ceiling/square", "ceiling/tiny")
    first = read(tmp_path / "gpu.json")["items"]
    assert first[kernels.SQUARE]["outcome"] == "out of memory" and "allocate" in first[kernels.SQUARE]["reason"]
    assert first["ceiling/tiny"]["reason"] == "ZeroDivisionError: division by zero"
    monkeypatch.undo()
    assert run(tmp_path / "gpu.json", "--only", "ceiling/square", "ceiling/tiny") == 0
    again = read(tmp_path / "gpu.json")["items"]
    assert again[kernels.SQUARE] == first[kernels.SQUARE]
    assert again["ceiling/tiny"]["outcome"] == "measured"


def test_a_step_that_does_not_fit_is_tried_smaller_and_with_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, bool]] = []

    def short_of_memory(model: Any, positional: Any, inputs: dict[str, torch.Tensor]) -> None:
        tried.append((inputs["segment_ids"].numel(), model.is_gradient_checkpointing))
        if len(tried) <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def watched(item: Training, machine: Machine) -> Any:
        model = built(item, machine)
        model.register_forward_pre_hook(short_of_memory, with_kwargs=True)
        return model

    failures = 2
    monkeypatch.setattr(training, "built", watched)
    item = Training("rank-sft", replace(LLAMA, step_tokens=(512, 128)), 64)
    result = train(item, QUICK, CPU)
    assert result.details["activation_checkpointing"] == "yes"
    assert [checkpointing for _, checkpointing in tried[:3]] == [False, False, True]
    assert tried[0][0] > tried[1][0]
    failures = 9
    tried.clear()
    with pytest.raises(OutOfMemoryError, match="128 token slots and activation checkpointing"):
        train(replace(item, model=LLAMA), QUICK, CPU)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model", [LLAMA, BERT])
def test_kernels_agree_on_packed_rows(model: Any) -> None:
    in_bf16 = drawn(model, model.row_lengths[0], CPU)
    layer = in_bf16._replace(**{name: getattr(in_bf16, name).detach().float() for name in ("query", "key", "value")})
    expected_RLAD = kernel_of("dense", layer)()
    # Float32 in another order of sums.
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(kernel_of("flex", layer)(), expected_RLAD, atol=1e-5, rtol=1e-5)


def test_rows_are_full_of_pairs_of_the_right_length() -> None:
    model = FULL.trained["7b"]
    segment_ids = full_rows(model, 40, 1024)
    starts, longest, _ = Visible(segment_ids, causal=True).sequences()
    assert segment_ids.shape == (40, 1024) and int(segment_ids.min()) == 1
    assert longest <= model.longest_pair
    lengths = np.diff(starts.numpy())
    assert lengths.sum() == segment_ids.numel()
    assert abs(lengths.mean() - model.pair_tokens) < 15  # the last of a row is cut


@pytest.mark.parametrize("name", FULL.models)
def test_pairs_have_the_mean_length_and_fill_the_rows_of_a_call(name: str) -> None:
    model = FULL.models[name]
    encoder = model.encoder(model.row_lengths[0])
    pairs = encode_groups(encoder, model.groups(40))
    assert pairs.lengths.tolist() == model.lengths(40 * DOCUMENTS).tolist()
    assert np.mean(pairs.lengths) == pytest.approx(model.pair_tokens, rel=0.1)
    assert int(pairs.token_ids.max()) < model.config["vocab_size"]
    batch = serving.request(model, FULL.scoring_rows).batch
    assert 0.9 * FULL.scoring_rows <= len(batch.input_ids) <= FULL.scoring_rows
    assert (batch.segment_ids > 0).mean() > 0.8


def test_an_engine_that_is_not_installed_is_absent() -> None:
    model = QUICK.served["tiny"]
    with (
        pytest.raises(AbsentError, match="tensorrt is not installed"),
        serving._opened("tensorrt", model, model.encoder(128), QUICK),
    ):
        pass


def test_goals_are_of_items_that_there_are() -> None:
    assert all(any(f"{item}/".startswith(f"{name}/") for item in items_of(FULL)) for name in GOALS)


def test_counts_and_flops_are_those_of_the_batch() -> None:
    item = Training("cpt", LLAMA, 64)
    encoder, shape = LLAMA.encoder(64), LLAMA.shape(causal=True)
    groups = taught(item, LLAMA.groups(3))
    batch = LanguageCollator(encoder)(groups)
    pairs, slots = encode_groups(encoder, groups), batch["labels"].numel()
    bearing = int((batch["labels"] != IGNORED).sum()) / slots
    work = Work(True, slots // 64, 64, bf16=True, checkpointing=True)
    result = figures(shape, work, np.array([2.0]), [slots], pairs, Timing(0, 1, 1), CPU)
    assert result.details["row_fill"] == int((batch["packed"]["segment_ids"] > 0).sum()) / slots
    assert result.details["pairs_per_second"] == pytest.approx(len(pairs) / 2)
    assert result.tokens_per_second == Spread(slots / 2, slots / 2, slots / 2)
    assert result.tflops is not None
    no_head = flops_per_token(replace(shape, head=0), replace(work, checkpointing=False))
    assert result.tflops.median == pytest.approx((no_head + 6 * shape.head * bearing) * slots / 2 / 1e12, rel=1e-4)
    assert float(result.details["computed_tflops"]) > result.tflops.median
