from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
)

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import SMALL, tiny_bert, tiny_llama
from trainer.checkpoints.load import (
    CheckpointError,
    check_packing,
    load_causal_lm,
    load_for_training,
    load_scorer,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "scorer")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "scorer")


def test_a_pair_cannot_be_longer_than_the_models_positions(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, max_position_embeddings=40))
    with pytest.raises(CheckpointError, match="max_pair_tokens 48 is above the model's 40 positions"):
        check_packing(model, PairEncoder.load(bert), "short")


def test_a_tokenizer_larger_than_the_model_is_refused(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**{**SMALL, "vocab_size": 20}))
    with pytest.raises(CheckpointError, match="the model knows 20 tokens"):
        check_packing(model, PairEncoder.load(bert), "few")


def test_checkpoints_of_the_wrong_kind_are_named(tmp_path: Path, bert: Path, llama: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_scorer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"not a checkpoint \(it has no config.json\)"):
        load_scorer(tmp_path)
    with pytest.raises(CheckpointError, match="not a causal LM checkpoint"):
        load_causal_lm(llama)
    with pytest.raises(CheckpointError, match="not a causal LM checkpoint"):
        load_causal_lm(bert)


def test_a_causal_lm_is_no_scorer_until_it_is_trained(tmp_path: Path, llama: Path) -> None:
    directory = shutil.copytree(llama, tmp_path / "lm")
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(directory)
    with pytest.raises(CheckpointError, match=r"no 'score.weight': it is not a trained scorer"):
        load_scorer(directory)
    assert load_for_training(directory).config.num_labels == 1
