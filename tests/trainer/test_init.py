"""First checkpoints with late interaction, and students of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import write_teacher
from tests.support.scores import packed_scores
from tests.support.stages import FEW, fails, run
from trainer import distill, init, rank_sft, score
from trainer.packed.heads import SCALE

SHAPE = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
LIMITS = ["--max_query_tokens", 16, "--max_pair_tokens", 64, "--row_length", 64, "--vocab_size", 400]
LATE = ["--pooling", "late_interaction"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    root = tmp_path_factory.mktemp("base")
    (root / "shape.json").write_text(json.dumps(SHAPE))
    run(init, "--config", root / "shape.json", "--data", data, "--output_dir", root / "bert", *LIMITS, *LATE)
    return root / "bert"


def test_a_shape_may_say_what_the_flag_says(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "shape.json").write_text(json.dumps({**SHAPE, "pair_pooling": "late_interaction"}))
    run(init, "--config", tmp_path / "shape.json", "--data", data, "--output_dir", tmp_path / "bert", *LIMITS)
    flag, said = (load_file(directory / "model.safetensors") for directory in (base, tmp_path / "bert"))
    assert flag.keys() == said.keys() and not any("pooler" in name for name in said)
    assert all(torch.equal(weight, said[name]) for name, weight in flag.items())
    assert (said["classifier.weight"] == SCALE).all()


def test_the_configuration_of_a_checkpoint_is_a_shape_too(base: Path, bert: Path, data: Path, tmp_path: Path) -> None:
    for name, checkpoint, flags in (("late", base, []), ("head", bert, LATE)):
        shape = ["--config", checkpoint / "config.json", "--data", data]
        run(init, *shape, "--output_dir", tmp_path / name, *LIMITS, *flags)
        fresh = load_file(tmp_path / name / "model.safetensors")
        assert (fresh["classifier.weight"] == SCALE).all() and not any("pooler" in weight for weight in fresh)


def test_a_student_of_fewer_layers_and_one_by_adapters_interact_late(base: Path, data: Path, tmp_path: Path) -> None:
    scores = write_teacher(tmp_path / "scores.parquet", data)
    common = ["--model", base, "--data", data, "--learning_rate", "1e-2", *FEW]
    run(distill, *common, "--scores", scores, "--student_layers", 1, "--output_dir", tmp_path / "short")
    run(rank_sft, *common, "--lora_rank", 2, "--output_dir", tmp_path / "adapted")
    before = load_file(base / "model.safetensors")
    for name in ("short", "adapted"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["pair_pooling"] == "late_interaction"
        assert config["num_hidden_layers"] == (1 if name == "short" else 2)
        assert packed_scores(tmp_path / name).std() > 1e-3
        after = load_file(tmp_path / name / "model.safetensors")
        moved = {weight for weight in after if not torch.equal(before[weight], after[weight])}
        assert "classifier.weight" in moved and not any("pooler" in weight for weight in after)
        if name == "adapted":
            assert all(".layer." in weight for weight in moved if weight.startswith("bert"))


def test_what_has_no_late_interaction_is_named(
    base: Path, bert: Path, llm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", tmp_path / "out", *LATE]
    assert "--pooling late_interaction is for encoders, and this is a causal LM" in fails(
        init, capsys, "--pretrained", llm, *out
    )
    assert "has a score head already" in fails(init, capsys, "--pretrained", bert, *out)
    assert not list(tmp_path.iterdir())
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 1, "pair_pooling": "late_interaction"}  # fmt: skip
    (tmp_path / "decoder.json").write_text(json.dumps(decoder))
    shape = ["--config", tmp_path / "decoder.json", "--data", data, "--output_dir", tmp_path / "out"]
    assert "and this is a causal LM" in fails(init, capsys, *shape)
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.json"]
    other = shutil.copytree(base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "pair_pooling": "sides"}))
    scored = ["--model", other, "--data", data, "--output", tmp_path / "scores.parquet"]
    assert f"{other}: the \"pair_pooling\" 'sides' is not known" in fails(score, capsys, *scored)
