"""A command line that is wrong ends with one line and exit code 2, before any data are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stages import fails
from trainer import distill, evaluate, init, merge, plan, pretrain, rank_sft, rerank, score
from trainer.command import FlagError, parse
from trainer.rank_sft import RankArguments
from trainer.training.run import StageArguments

NEEDED: dict[Any, list[str]] = {
    distill: ["--model", "m", "--data", "d", "--scores", "s", "--output_dir", "o"],
    evaluate: ["--data", "d", "--systems", "random"],
    init: ["--output_dir", "o"],
    merge: ["--adapter", "a", "--output_dir", "o"],
    plan: [
        "--gpus",
        "1",
        "--gpu_memory_gib",
        "80",
        "--peak_tflops",
        "1",
        "--utilisation",
        "0.5",
        "--pairs",
        "1",
        "--model",
        "m",
    ],
    pretrain: ["--model", "m", "--data", "d", "--output_dir", "o"],
    rank_sft: ["--model", "m", "--data", "d", "--output_dir", "o"],
    rerank: ["--model", "m", "--data", "d", "--run", "r", "--output", "o"],
    score: ["--model", "m", "--data", "d", "--output", "o"],
}


@pytest.mark.parametrize("module", NEEDED, ids=lambda module: module.__name__)
def test_a_misspelt_flag_is_named_with_the_one_that_was_meant(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    correct = NEEDED[module][-2]
    for wrong in (f"{correct}s", correct[:-1]):  # argparse takes a beginning for the whole
        assert fails(module, capsys, *NEEDED[module], wrong, "x").startswith(f"error: '{wrong}' is no flag")
    assert f"is {correct} meant?" in fails(module, capsys, *NEEDED[module], f"{correct}s", "x")
    assert f"is {correct} meant?" in fails(module, capsys, f"{correct}s=x")  # and not that it is missing
    assert "'stray' is no flag" in fails(module, capsys, "stray", *NEEDED[module])


@pytest.mark.parametrize(
    "flags",
    [
        "--eval_strategy steps", "--report_to wandb", "--fp16 true", "--bf16_full_eval maybe", "--learning_rate nan",
        "--learning_rate -1", "--learning_rate fast", "--optim adamw_8bit", "--optim none", "--push_to_hub true",
        "--label_smoothing_factor 0.1", "--resume_from_checkpoint x", "--metric_for_best_model loss",
        "--save_only_model true", "--load_best_model_at_end true", "--auto_find_batch_size true",
        "--lr_scheduler_type upwards", "--logging_strategy sometimes", "--accelerator_config {", "--fsdp nonsense",
        "--deepspeed nowhere.json", "--torch_compile_backend none", "--warmup_steps -1", "--seed x", "--debug nothing",
        "--objective best", "--early_stop 0", "--documents_per_query 1", "--lora_rank x", "--measure nDCG@0",
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_one_line(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(rank_sft, capsys, *NEEDED[rank_sft], *flags.split())


FLAGS = sorted({f"--{name}" for kind in (StageArguments, RankArguments) for name in kind.__dataclass_fields__})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from(["", "x", "-1", "nan", "1e999", "true", "[]", "{"]))))
def test_any_flags_are_taken_or_refused_in_one_line(given_flags: list[tuple[str, str]]) -> None:
    argv = [part for pair in given_flags for part in pair]
    try:
        parse(["--model", "m", "--output_dir", "o", *argv], RankArguments, StageArguments)
    except Exception as error:
        assert getattr(error, "exit_code", None) == 2, repr(error)
        assert "\n" not in str(error)
    else:
        return


def test_help_is_no_error() -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"], RankArguments)
    with pytest.raises(FlagError, match="required: --model"):
        parse([], RankArguments)
