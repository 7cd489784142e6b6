from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    RobertaConfig,
)

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from tests.checkpoints import tiny_bert, tiny_llama
from trainer.models import (
    CheckpointError,
    PackedScorer,
    check_packing,
    load_causal_lm,
    load_for_training,
    load_scorer,
)
from trainer.packed import MASKED, attention_mask, packed_logits

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
    "initializer_range": 0.3,
    "vocab_size": 400,
    "pad_token_id": 0,
}
DOCUMENTS = [Document("river " * size, "bridge " * (size // 2)) for size in range(1, 20)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "scorer")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "scorer")


def test_mask_is_block_diagonal_and_finite() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = attention_mask(segments, causal=False, dtype=torch.float16)[0, 0] == 0
    assert seen.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    causal = attention_mask(segments, causal=True, dtype=torch.float16)[0, 0]
    assert (causal == 0).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert causal.isfinite().all()
    assert causal.min() == MASKED


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_packed_scores_equal_scores_one_by_one(kind: str, bert: Path, llama: Path) -> None:
    directory = bert if kind == "bert" else llama
    encoder = PairEncoder.load(directory)
    scorer = PackedScorer(load_scorer(directory))
    pairs = encoder.encode("river bridge", DOCUMENTS)
    together = scorer.score(encoder.pack(pairs))
    alone = np.concatenate([scorer.score(encoder.pack([pair])) for pair in pairs])
    assert np.abs(together - alone).max() < 1e-5
    assert together.std() > 1e-3


ENCODERS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("electra", {"embedding_size": 32}),
    ("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256}),
    ("albert", {"embedding_size": 16}),
    ("nomic_bert", {}),
    ("eurobert", {"num_key_value_heads": 4, "classifier_pooling": "bos"}),
]
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {"num_key_value_heads": 4}),
    ("qwen3", {"head_dim": 8, "num_key_value_heads": 4}),
    ("gemma", {"head_dim": 8, "num_key_value_heads": 4}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
]


@pytest.mark.parametrize(("family", "settings"), [*ENCODERS, *DECODERS])
def test_families_that_pack(family: str, settings: dict[str, Any], bert: Path, llama: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **settings})
    model = AutoModelForSequenceClassification.from_config(config)
    encoder = PairEncoder.load(llama if (family, settings) in DECODERS else bert)
    check_packing(model, encoder, family)
    assert PackedScorer(model.eval()).score(encoder.pack(encoder.encode("river", DOCUMENTS))).std() > 1e-3


def test_a_head_that_pools_over_all_tokens_is_refused(bert: Path) -> None:
    config = AutoConfig.for_model("eurobert", **SMALL, num_key_value_heads=4, classifier_pooling="mean")
    with pytest.raises(CheckpointError, match='eurobert model pools over all tokens: set "classifier_pooling": "bos"'):
        check_packing(AutoModelForSequenceClassification.from_config(config), PairEncoder.load(bert), "base")


def test_families_whose_positions_or_masks_are_their_own_are_refused(bert: Path, llama: Path) -> None:
    roberta = AutoModelForSequenceClassification.from_config(RobertaConfig(**SMALL, type_vocab_size=2))
    with pytest.raises(CheckpointError, match="positions of this roberta model begin at 1"):
        check_packing(roberta, PairEncoder.load(bert), "base")
    window = AutoModelForSequenceClassification.from_config(
        MistralConfig(**SMALL, num_key_value_heads=4, sliding_window=4)
    )
    with pytest.raises(CheckpointError, match="above the 4 tokens that the sliding window of this mistral model sees"):
        check_packing(window, PairEncoder.load(llama), "mistral")


def test_a_pair_cannot_be_longer_than_the_models_positions(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, max_position_embeddings=40))
    with pytest.raises(CheckpointError, match="max_pair_tokens 48 is above the model's 40 positions"):
        check_packing(model, PairEncoder.load(bert), "short")


def test_a_tokenizer_larger_than_the_model_is_refused(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**{**SMALL, "vocab_size": 20}))
    with pytest.raises(CheckpointError, match="the model knows 20 tokens"):
        check_packing(model, PairEncoder.load(bert), "few")


def test_language_model_logits_do_not_leak_between_pairs(llama: Path) -> None:
    encoder = PairEncoder.load(llama)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    pairs = encoder.encode("river", DOCUMENTS[:3])
    batch = encoder.pack(pairs)
    inputs = [torch.from_numpy(array).long() for array in batch[:-1]]
    with torch.inference_mode():
        logits_RLV = packed_logits(model, *inputs)
        for pair, slot in zip(pairs, batch.slots, strict=True):
            row, place = divmod(int(slot), batch.pool_positions.shape[1])
            alone = model(torch.from_numpy(pair.token_ids)[None].long()).logits[0]
            packed = logits_RLV[row][inputs[3][row] == place + 1]
            assert torch.allclose(packed, alone, atol=1e-5)


def test_a_saved_student_scores_the_same_in_cross_encoder(bert: Path) -> None:
    encoder = PairEncoder.load(bert)
    ours = PackedScorer(load_scorer(bert)).score(encoder.pack(encoder.encode("river bridge", DOCUMENTS)))
    reference = CrossEncoder(str(bert), activation_fn=torch.nn.Identity(), device="cpu", max_length=48)
    theirs = reference.predict([("river bridge", " ".join(filter(None, document))) for document in DOCUMENTS])
    whole = [not pair.truncated for pair in encoder.encode("river bridge", DOCUMENTS)]
    assert sum(whole) > 10
    assert np.abs(ours - theirs)[whole].max() < 1e-5


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
