"""The GPU bench, tried on a CPU with tiny models: every item, what it skips, what it counts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from bench.spread import Spread
from bench.training_gpu.__main__ import attempted, items_of, main
from bench.training_gpu.attention import Layer, drawn, flex, full_rows, sdpa, sequences
from bench.training_gpu.ceiling import SQUARE, square
from bench.training_gpu.collection import encoder_of, groups_of
from bench.training_gpu.records import GIB, USABLE, DoesNotFitError, Machine, Result, Results, Timing
from bench.training_gpu.sizes import FULL, QUICK
from bench.training_gpu.stages import Training, built, choose_step, taught, train
from bench.training_gpu.steps import Seen, figures
from trainer.data.pairs import encode_groups
from trainer.measures.costs import Work, flops_per_token
from trainer.training.batches import IGNORED, LanguageCollator

# PEFT asks for an attribute by the name that transformers is giving up, and the bench uses the name of a flag that
# older versions know too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
CPU = Machine.of("cpu")
LLAMA, BERT = QUICK.models["7b"], QUICK.models["bert6"]


def run(output: Path, *flags: str) -> int:
    return main(["--device", "cpu", "--quick", "--output", str(output), *flags])


def read(output: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(output.read_text())
    return saved


def test_a_run_measures_every_item_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "gpu.json"
    assert run(output, "--minutes", "0") == 0
    assert not output.exists()
    assert run(output, "--only", "ceiling") == 0
    ceilings = read(output)["items"]
    assert set(ceilings) == {name for name in items_of(QUICK) if name.startswith("ceiling/")}

    assert run(output, "--date", "2026-01-02") == 0
    whole = read(output)
    assert set(whole["items"]) == set(items_of(QUICK))
    assert {name: whole["items"][name] for name in ceilings} == ceilings
    for name, item in whole["items"].items():
        if name.endswith(("/flex", "/varlen")):
            assert item["outcome"] == "absent" and item["reason"]
        else:
            assert item["outcome"] == "measured"
            assert (whole["shares_of_ceiling"].get(name, 0) > 0) == (not name.startswith("attention/"))
    assert whole["setting"]["torch"] == torch.__version__
    assert [command.partition("gpu.json")[2] for command in whole["commands"]] == [
        " --only ceiling",
        " --date 2026-01-02  # 2026-01-02",
    ]
    assert "cpt/7b/lora-bf16" in capsys.readouterr().out

    assert run(output) == 0
    assert read(output)["items"] == whole["items"]


def test_bad_flags_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "gpu.json", "--only", "nothing") == 2
    assert "no item begins so" in capsys.readouterr().err
    assert main(["--device", "cpu", "--output", str(tmp_path / "gpu.json")]) == 2
    assert "--quick" in capsys.readouterr().err
    Results(tmp_path / "other.json", {"device": "another GPU"}).save({})
    assert run(tmp_path / "other.json") == 2
    assert "another --output" in capsys.readouterr().err


def test_memory_that_does_not_suffice_is_recorded(tmp_path: Path) -> None:
    result = attempted(square, replace(QUICK, square=2**30), CPU)
    assert result.outcome == "out of memory" and "allocate" in result.reason
    results = Results(tmp_path / "gpu.json", {})
    results.items |= {SQUARE: result, "broken": attempted(_breaks, QUICK, CPU)}
    results.save({})
    again = Results(tmp_path / "gpu.json", {})
    assert again.items == results.items
    assert not again.lacks(SQUARE)
    assert again.items["broken"].reason == "ZeroDivisionError: division by zero"
    assert again.lacks("broken")


def _breaks(sizes: object, machine: Machine) -> Result:
    raise ZeroDivisionError("division by zero")


def test_what_the_plan_says_is_too_large_is_skipped() -> None:
    full = Training("rank-sft", FULL.models["7b"], 1024)
    small = Machine(torch.device("cpu"), 79 * GIB)
    result = attempted(partial(train, full), FULL, small)
    assert result.outcome == "skipped" and "GiB by trainer.costs" in result.reason
    lora = replace(full, lora_rank=16)
    step = choose_step(lora, lora.model.shape(causal=False), small.memory)
    assert step.planned_gib < 79 and not step.work.checkpointing
    half = replace(lora, frozen_bf16=True)
    assert choose_step(half, half.model.shape(causal=False), small.memory).tokens > step.tokens


def test_memory_decides_on_activation_checkpointing() -> None:
    item = Training("rank-sft", LLAMA, 64)
    shape = LLAMA.shape(causal=False)
    enough = int(choose_step(item, shape, None).planned_gib * GIB / USABLE)
    less = replace(CPU, memory=enough - 1)
    assert train(item, QUICK, less).details["activation_checkpointing"] == "yes"
    assert choose_step(item, shape, enough + 1).work.checkpointing is False
    with pytest.raises(DoesNotFitError):
        choose_step(item, shape, 1000)


def test_only_what_lora_freezes_is_in_bf16() -> None:
    model = built(Training("rank-sft", LLAMA, 64, lora_rank=4, frozen_bf16=True), CPU)
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16), name
        assert weight.requires_grad == ("lora_" in name or name.startswith("score"))


def _in_float32(layer: Layer) -> Layer:
    query, key, value = (each.detach().float() for each in layer[:3])
    return Layer(query, key, value, layer.segment_ids, layer.causal)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("model", [LLAMA, BERT])
def test_kernels_agree_on_packed_rows(model: Any) -> None:
    layer = _in_float32(drawn(model, model.row_lengths[0], CPU))
    expected_RLHD = sdpa(layer)()
    torch.testing.assert_close(flex(layer)(), expected_RLHD, atol=1e-5, rtol=1e-5)

    starts, longest = sequences(layer.segment_ids)
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in layer[:3])  # [T, H, D], as varlen has them
    assert longest == max(np.diff(starts.numpy()))
    for start, end in pairwise(starts.tolist()):
        own_query, own_key, own_value = (each[start:end].transpose(0, 1)[None] for each in (query, key, value))
        alone_HnD = F.scaled_dot_product_attention(
            own_query, own_key, own_value, is_causal=layer.causal, enable_gqa=True
        )[0]
        expected = expected_RLHD.flatten(0, 1)[start:end].transpose(0, 1)
        torch.testing.assert_close(alone_HnD, expected, atol=1e-5, rtol=1e-5)


def test_rows_are_full_of_pairs_of_the_right_length() -> None:
    model = FULL.models["7b"]
    segment_ids = full_rows(model, 40, 1024)
    starts, longest = sequences(segment_ids)
    assert segment_ids.shape == (40, 1024) and int(segment_ids.min()) == 1
    assert longest <= model.longest_pair
    lengths = np.diff(starts.numpy())
    assert lengths.sum() == segment_ids.numel()
    assert abs(lengths.mean() - model.pair_tokens) < 15  # the last of a row is cut


def test_the_collection_has_pairs_of_the_mean_length() -> None:
    for model in FULL.models.values():
        encoder = encoder_of(model, model.row_lengths[0])
        pairs = encode_groups(encoder, groups_of(model, encoder, 40))
        mean = np.mean(pairs.lengths)
        assert abs(mean - model.pair_tokens) < 0.1 * model.pair_tokens
        assert int(pairs.token_ids.max()) < model.config["vocab_size"]


def test_counts_and_flops_are_those_of_the_batch() -> None:
    item = Training("cpt", LLAMA, 64)
    encoder, shape = encoder_of(LLAMA, 64), LLAMA.shape(causal=True)
    groups = taught(item, groups_of(LLAMA, encoder, 3))
    batch = LanguageCollator(encoder)(groups)
    seen = Seen()
    seen(None, None, {**batch["packed"], "labels": batch["labels"]})
    pairs = encode_groups(encoder, groups)
    lengths = pairs.lengths
    slots = batch["labels"].numel()
    assert seen.slots == [slots]
    assert seen.fill == lengths.sum() / slots
    assert seen.pair_tokens == lengths.mean()
    assert seen.attended == (lengths**2).sum() / slots
    assert seen.bearing == int((batch["labels"] != IGNORED).sum()) / slots

    rows = slots // 64
    work = Work(True, rows, 64, bf16=True, checkpointing=True)
    result = figures(shape, work, [2.0], seen, Timing(0, 1, 1), CPU)
    assert result.tokens_per_second == Spread(slots / 2, slots / 2, slots / 2)
    assert result.tflops is not None
    no_head = flops_per_token(replace(shape, head=0), replace(work, checkpointing=False))
    head = 6 * shape.head * seen.bearing
    assert result.tflops.median == pytest.approx((no_head + head) * slots / 2 / 1e12, rel=1e-4)
    assert float(result.details["computed_tflops"]) > result.tflops.median
