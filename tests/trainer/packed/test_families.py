"""Model families: which ones packing takes, at full pair length, and what it says to the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from tests.support.checkpoints import LIMITS, SMALL, tiny_bert, tiny_llama, tiny_roberta, tiny_xlm_roberta
from trainer.checkpoints.load import CheckpointError, PackedScorer, check_packing, load_scorer
from trainer.packed.families import narrowest_window, position_offset

LONGEST = LIMITS["max_pair_tokens"]
CONTROL_TOKENS: dict[str, Any] = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
SOME_LAYERS = {"use_sliding_window": True, "max_window_layers": 1}
GROUPED = {"num_key_value_heads": 4, "head_dim": 8}
DOCUMENTS = [
    Document(title="river " * size, summary="bridge " * (size // 2)) for size in range(1, 40)
]  # the last ones are cut

ENCODERS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("electra", {"embedding_size": 32}),
    ("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 256}),
    ("albert", {"embedding_size": 16}),
    ("nomic_bert", {}),
    ("eurobert", {"num_key_value_heads": 4, "classifier_pooling": "bos"}),
    ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("camembert", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("mpnet", {"pad_token_id": 1}),
    ("modernbert", {**CONTROL_TOKENS, "local_attention": 2 * (LONGEST - 1)}),
]
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {"num_key_value_heads": 4}),
    (
        "qwen2",
        {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": LONGEST, "max_window_layers": 1},
    ),
    ("qwen3", GROUPED),
    ("gemma", GROUPED),
    ("gemma2", {**GROUPED, "sliding_window": LONGEST}),
    ("gemma3_text", {**GROUPED, "sliding_window": LONGEST, "layer_types": ["sliding_attention", "full_attention"]}),
    ("mistral", {**GROUPED, "sliding_window": LONGEST}),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    ("falcon", {}),
]
WINDOWED = [("modernbert", {**CONTROL_TOKENS, "local_attention": 2 * (LONGEST - 1)})] + [
    (family, settings) for family, settings in DECODERS if "sliding_window" in settings
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_bert(tmp_path_factory.mktemp("bert") / "scorer"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_llama(tmp_path_factory.mktemp("llama") / "scorer"))


def tiny(family: str, settings: dict[str, Any], kind: Any = AutoModelForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind.from_config(AutoConfig.for_model(family, **{**SMALL, **settings})).eval()


def starting_at(encoder: PairEncoder, offset: int) -> PairEncoder:
    """The same encoder for a model whose positions begin elsewhere."""
    tokenizer = Tokenizer.from_str(encoder._tokenizer.to_str())
    return PairEncoder(tokenizer, replace(encoder.config, position_offset=offset))


@pytest.mark.parametrize(("family", "settings"), [*ENCODERS, *DECODERS])
def test_families_that_pack(family: str, settings: dict[str, Any], bert: PairEncoder, llama: PairEncoder) -> None:
    """Pairs of every length up to the longest, several in a row, next to the class's own forward."""
    model = tiny(family, settings)
    encoder = starting_at(llama if (family, settings) in DECODERS else bert, position_offset(model))
    check_packing(model, encoder, family)
    pairs = encoder.encode("river", DOCUMENTS)
    lengths = [len(pair.token_ids) for pair in pairs]
    assert min(lengths) < LONGEST // 2 < max(lengths) == LONGEST
    together = PackedScorer(model).score(encoder.pack(pairs))
    assert together.std() > 1e-3
    for pair, score in zip(pairs, together, strict=True):
        inputs = {"input_ids": torch.from_numpy(pair.token_ids)[None].long()}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = (torch.arange(len(pair.token_ids)) >= pair.document_start).long()[None]
        with torch.inference_mode():
            assert model(**inputs).logits.item() == pytest.approx(score, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize(("family", "settings"), DECODERS)
def test_language_models_of_every_decoder_pack(family: str, settings: dict[str, Any], llama: PairEncoder) -> None:
    check_packing(tiny(family, settings, AutoModelForCausalLM), llama, family)


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_pair_that_a_sliding_window_would_cut_is_refused(
    family: str, settings: dict[str, Any], bert: PairEncoder, llama: PairEncoder
) -> None:
    name = "local_attention" if family == "modernbert" else "sliding_window"
    model = tiny(family, {**settings, name: settings[name] - 2 if family == "modernbert" else settings[name] - 1})
    message = f"max_pair_tokens {LONGEST} is above the {LONGEST - 1} tokens .* of this {family} model sees .{name}"
    with pytest.raises(CheckpointError, match=message):
        check_packing(model, bert if family == "modernbert" else llama, "base")


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_the_windows_numbers_are_those_of_transformers(
    family: str, settings: dict[str, Any], bert: PairEncoder, llama: PairEncoder
) -> None:
    """A pair of as many tokens as the window scores alone as if there were none; one token more, and it does not."""
    encoder = bert if family == "modernbert" else llama
    name = "local_attention" if family == "modernbert" else "sliding_window"
    model, wide = tiny(family, settings), tiny(family, {**settings, name: 1000})
    window = narrowest_window(model.config)
    assert window is not None and window.tokens == LONGEST
    first = torch.full((1, 1), 7)
    tokens = torch.randint(10, 390, (1, LONGEST), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for each, same in ((tokens, True), (torch.cat([first, tokens], dim=1), False)):
            body, without = (net.base_model(each).last_hidden_state for net in (model, wide))
            assert torch.allclose(body, without, atol=1e-5) == same
    assert encoder.config.max_pair_tokens == LONGEST


def test_a_window_that_no_layer_uses_is_none() -> None:
    for family, settings in (
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("qwen3", {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("gemma3_text", {**GROUPED, "sliding_window": 4, "layer_types": ["full_attention"] * 2}),
        ("mistral", {"sliding_window": None}),
        ("modernbert", {"local_attention": 4, "layer_types": ["full_attention"] * 2}),
        ("bert", {}),
    ):
        assert narrowest_window(AutoConfig.for_model(family, **{**SMALL, **settings})) is None, family


@pytest.mark.parametrize(
    ("family", "settings"),
    [("deberta-v2", {}), ("deberta", {}), ("bloom", {"n_head": 4, "n_layer": 2}), ("falcon", {"alibi": True})],
)
def test_families_whose_attention_takes_no_mask_are_refused_by_name(
    family: str, settings: dict[str, Any], bert: PairEncoder, llama: PairEncoder
) -> None:
    encoder = bert if "deberta" in family else llama
    with pytest.raises(CheckpointError, match=f"^base: a {family} model cannot be packed: its attention takes no mask"):
        check_packing(tiny(family, settings), encoder, "base")


def test_an_unheard_of_family_that_fails_inside_is_refused_by_name(bert: PairEncoder) -> None:
    with pytest.raises(CheckpointError, match=r"^base: a t5 model cannot be packed: ValueError: You must specify"):
        check_packing(tiny("t5", {}), bert, "base")


@pytest.mark.parametrize(("family", "pooling", "first"), [("eurobert", "mean", "bos"), ("modernbert", "mean", "cls")])
def test_a_head_that_pools_over_all_tokens_is_refused(family: str, pooling: str, first: str, bert: PairEncoder) -> None:
    model = tiny(family, {**CONTROL_TOKENS, "num_key_value_heads": 4, "classifier_pooling": pooling})
    message = f'this {family} model pools over all tokens: set "classifier_pooling": "{first}"'
    with pytest.raises(CheckpointError, match=message):
        check_packing(model, bert, "base")


def test_positions_that_begin_elsewhere_than_the_artefact_says_are_refused(bert: PairEncoder) -> None:
    model = tiny("roberta", {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2})
    with pytest.raises(CheckpointError, match=r"roberta model begin at 2, .* position_offset 0: make"):
        check_packing(model, bert, "base")
    check_packing(model, starting_at(bert, 2), "base")
    short = tiny("roberta", {"pad_token_id": 1, "max_position_embeddings": LONGEST + 1})
    with pytest.raises(
        CheckpointError, match=f"max_pair_tokens {LONGEST} is above the model's {LONGEST - 1} positions"
    ):
        check_packing(short, starting_at(bert, 2), "base")


def test_a_decoder_whose_padding_is_its_end_is_refused(llama: PairEncoder) -> None:
    end = llama._control_id(llama.config.end_token)
    with pytest.raises(CheckpointError, match=f"pad_token_id and the end of a pair are both token {end}"):
        check_packing(tiny("llama", {"pad_token_id": end}), llama, "base")


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta, tiny_xlm_roberta])
def test_a_saved_student_scores_the_same_in_other_loaders(make: Any, tmp_path: Path) -> None:
    """sentence-transformers' CrossEncoder, and transformers with the tokenizer's own template, in one padded batch."""
    directory = make(tmp_path / "student")
    encoder = PairEncoder.load(directory)
    pairs = encoder.encode("river bridge", DOCUMENTS)
    ours = PackedScorer(load_scorer(directory)).score(encoder.pack(pairs))
    texts = [document.text for document in DOCUMENTS]
    reference = CrossEncoder(str(directory), activation_fn=torch.nn.Identity(), device="cpu", max_length=LONGEST)
    theirs = reference.predict([("river bridge", text) for text in texts])
    whole = np.array([not pair.truncated for pair in pairs])
    assert sum(whole) >= 5
    assert np.abs(ours - theirs)[whole].max() < 1e-5

    plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    kept = [text for text, fits in zip(texts, whole, strict=True) if fits]
    batch = AutoTokenizer.from_pretrained(directory)(
        ["river bridge"] * len(kept), kept, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        assert np.abs(plain(**batch).logits[:, 0].numpy() - ours[whole]).max() < 1e-5
    assert ours.std() > 1e-3
