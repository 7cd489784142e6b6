"""Other people's tokenizers: padding for LLMs, templates for encoders, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import (
    ENCODER_NAMES,
    NAMES,
    ROBERTA_TOKENS,
    SMALL,
    byte_level,
    tiny_bert,
    tiny_roberta,
    write_teacher,
)
from tests.support.scores import packed_scores, plain_scores
from tests.support.stages import FEW, fails, run
from trainer import distill, init, rank_sft

LIMITS = ["--max_query_tokens", 12, "--max_pair_tokens", 48, "--row_length", 64, "--slots_per_row", 4]


def llm(directory: Path, tokenizer: Any, free_rows: int = 0, **settings: Any) -> Path:
    """A base LLM as the hub has them, with no pair encoding of ours."""
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    size = {"vocab_size": len(tokenizer) + free_rows, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model("qwen3", **{**SMALL, **size, **ids, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("special", "names", "free_rows", "padding", "rows"),
    [
        pytest.param(["<pad>", "<s>", "</s>"], {**NAMES, "unk_token": None}, 0, "<pad>", 400, id="a pad of its own"),
        pytest.param(
            ["<eot>", "<im_start>", "<vision_pad>"],
            {"eos_token": "<eot>", "pad_token": "<eot>"}, 0, "<vision_pad>", 400, id="pad is eos, no bos: Qwen",
        ),
        pytest.param(
            ["<s>", "</s>", "<|reserved_0|>", "<unk>"],
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, 0, "<|reserved_0|>", 400, id="reserved",
        ),
        pytest.param(
            ["<unk>", "<s>", "</s>"],
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, 0, "<unk>", 400,
            id="the unknown token: Llama 2",
        ),
        pytest.param(
            ["<eot>"], {"bos_token": "<eot>", "eos_token": "<eot>", "unk_token": "<eot>"}, 0, "<pad>", 401,
            id="added, and a row: GPT-2",
        ),
        pytest.param(["<eot>"], {"eos_token": "<eot>"}, 8, "<pad>", 408, id="added in a free row"),
    ],
)  # fmt: skip
def test_a_teacher_scores_the_same_in_transformers_whatever_padding_its_llm_had(
    special: list[str], names: dict[str, Any], free_rows: int, padding: str, rows: int,
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """From a base LLM over rank-SFT to a padded batch in AutoModelForSequenceClassification."""
    source = llm(tmp_path / "hub", byte_level(special, **names), free_rows=free_rows)
    run(init, "--pretrained", source, "--output_dir", tmp_path / "llm", *LIMITS)
    assert f"padding {padding} (" in capsys.readouterr().out
    run(rank_sft, "--model", tmp_path / "llm", "--data", data, "--output_dir", tmp_path / "teacher", *FEW)

    teacher = tmp_path / "teacher"
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert tokenizer.pad_token == padding
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.get_input_embeddings().weight.shape[0] == rows
    encoder = PairEncoder.load(teacher)
    assert encoder.config.start_token == (names.get("bos_token") if "<s>" in special else None)
    theirs = plain_scores(model, teacher, encoder)
    assert np.abs(theirs - packed_scores(teacher)).max() < 1e-5
    assert theirs.std() > 1e-3


def test_a_pretrained_roberta_keeps_its_template_and_its_offset(data: Path, tmp_path: Path) -> None:
    roberta = tiny_roberta(tmp_path / "hub")
    (roberta / "pair_encoding.json").unlink()
    run(init, "--pretrained", roberta, "--output_dir", tmp_path / "base", *LIMITS)
    encoding = json.loads((tmp_path / "base/pair_encoding.json").read_text())
    assert (encoding["start_token"], encoding["separators"], encoding["position_offset"]) == ("<s>", 2, 2)
    scores = write_teacher(tmp_path / "scores.parquet", data)
    source = ["--model", tmp_path / "base", "--data", data, "--scores", scores]
    run(distill, *source, "--output_dir", tmp_path / "student", *FEW)
    student = tmp_path / "student"
    model = AutoModelForSequenceClassification.from_pretrained(student)
    theirs = plain_scores(model, student, PairEncoder.load(student))
    assert np.abs(theirs - packed_scores(student)).max() < 1e-5


@pytest.mark.parametrize(
    ("family", "settings", "offset"),
    [("roberta", {}, 1), ("xlm-roberta", {"type_vocab_size": 1}, 1), ("modernbert", {"local_attention": 128}, 0)],
)
def test_fresh_encoders_of_other_families(
    family: str, settings: dict[str, Any], offset: int, data: Path, tmp_path: Path
) -> None:
    """A fresh tokenizer's padding is token 0, so the positions of a fresh RoBERTa begin at 1."""
    shape = {name: value for name, value in SMALL.items() if name != "num_labels"}  # which is always 1
    (tmp_path / "c.json").write_text(json.dumps({"model_type": family, **shape, **settings}))
    flags = ["--config", tmp_path / "c.json", "--data", data, "--vocab_size", 300, *LIMITS]
    run(init, *flags, "--output_dir", tmp_path / "base")
    encoder = PairEncoder.load(tmp_path / "base")
    assert (encoder.config.position_offset, encoder.config.separators) == (offset, 1)
    batch = AutoTokenizer.from_pretrained(tmp_path / "base")("river", "bridge")
    assert ("token_type_ids" in batch) == (family == "roberta")


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output_dir", tmp_path / "out", *LIMITS]

    def refused(name: str, tokenizer: Any, **settings: Any) -> str:
        return fails(init, capsys, "--pretrained", llm(tmp_path / name, tokenizer, **settings), *out)

    llama = byte_level(["<pad>", "<unk>", "<s>", "</s>"], **NAMES)
    assert "eos_token_id is 7 in the model's configuration, and the tokenizer's eos_token '</s>' is 3" in refused(
        "eos", llama, eos_token_id=7
    )
    assert "bos_token_id is 9 in the model's configuration" in refused("bos", llama, bos_token_id=9)
    assert "the tokenizer gives tokens up to 399; the model knows 390 tokens" in refused("large", llama, free_rows=-10)
    assert "its tokenizer has no eos_token" in refused("endless", byte_level(["<s>"], bos_token="<s>"))
    run(init, "--pretrained", llm(tmp_path / "several", llama, eos_token_id=[3, 7]), *out)


def test_encoders_whose_tokenizers_write_pairs_otherwise_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", tmp_path / "out", *LIMITS]
    bert = tiny_bert(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(bert)

    byte_level(["<s>", "<pad>", "</s>", "<unk>"], **NAMES).save_pretrained(bert)
    assert "its tokenizer has no cls_token, which a pair needs" in fails(init, capsys, "--pretrained", bert, *out)

    byte_level(ROBERTA_TOKENS, **NAMES, **ENCODER_NAMES).save_pretrained(bert)
    message = fails(init, capsys, "--pretrained", bert, *out)
    assert "pad_token_id is 0 in the model's configuration, and the tokenizer's pad_token '<pad>' is 1" in message

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B:1 [SEP]:1", ids)
    type(tokenizer)(tokenizer_object=backend, **tokenizer.special_tokens_map).save_pretrained(bert)
    message = fails(init, capsys, "--pretrained", bert, *out)
    assert "its tokenizer writes a pair as '[CLS] " in message
    assert "'[CLS] left [SEP] right [SEP]' with one [SEP] or two in the middle" in message

    for file in bert.glob("tokenizer*"):
        file.unlink()
    (bert / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')
    message = fails(init, capsys, "--pretrained", bert, *out)
    assert "its tokenizer has no tokenizer.json, which packing and serving need" in message
    assert not (tmp_path / "out").exists()
