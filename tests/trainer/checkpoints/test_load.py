from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.support.checkpoints import SMALL
from trainer.checkpoints.load import CheckpointError, load_causal_lm, load_for_training, load_scorer


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
