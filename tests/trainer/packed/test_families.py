"""Model families: which ones packing takes, at full pair length, and what it says to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from model_repository.tokenizer.pair_encoding import Document, Pair, PairEncoder
from tests.support.checkpoints import LIMITS, SMALL, tiny_bert, tiny_modernbert, tiny_roberta, tiny_xlm_roberta
from trainer.checkpoints.load import CheckpointError, PackedScorer, check_packing, load_for_training, load_scorer
from trainer.packed import forward
from trainer.packed.attention import MASKED
from trainer.packed.body import is_decoder
from trainer.packed.families import (
    FULL,
    MASK_OF_KIND,
    ONE_MASK,
    SLIDING,
    narrowest_window,
    position_offset,
    reach_of_layers,
)
from trainer.packed.heads import give_late_interaction

LONGEST = LIMITS["max_pair_tokens"]
WINDOW = 16
CONTROL_TOKENS: dict[str, Any] = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
GROUPED = {"num_key_value_heads": 4, "head_dim": 8}
SEEN = {**GROUPED, "sliding_window": WINDOW}
MODERNBERT: tuple[str, dict[str, Any]] = ("modernbert", {**CONTROL_TOKENS, "local_attention": 2 * (WINDOW - 1)})
MIXED = {**SEEN, "layer_types": [SLIDING, FULL]}
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
    ("eurobert", {"num_key_value_heads": 4, "classifier_pooling": "mean"}),
    ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("camembert", {"type_vocab_size": 1, "pad_token_id": 1}),
    ("mpnet", {"pad_token_id": 1}),
    MODERNBERT,
    (MODERNBERT[0], {**MODERNBERT[1], "classifier_pooling": "mean"}),
]
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {"num_key_value_heads": 4}),
    ("qwen3", GROUPED),
    ("gemma", GROUPED),
    ("gpt2", {}),
    ("gpt_neox", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    ("falcon", {}),
    ("exaone4", MIXED),
    ("gemma2", SEEN),
    ("gemma3_text", MIXED),
    ("ministral", MIXED),
    ("ministral3", SEEN),
    ("mistral", MIXED),
    ("mixtral", {**SEEN, "num_local_experts": 2}),
    ("olmo3", {**MIXED, "eos_token_id": 3}),
    ("phi3", {**SEEN, "eos_token_id": 3}),
    ("qwen2", {**SEEN, "use_sliding_window": True, "max_window_layers": 1}),
    ("qwen3", {**SEEN, "use_sliding_window": True, "max_window_layers": 0}),
    ("smollm3", {**MIXED, "use_sliding_window": True, "bos_token_id": 2, "eos_token_id": 3}),
    ("starcoder2", {**SEEN, "bos_token_id": 2, "eos_token_id": 3}),
]
WINDOWED = [each for each in (*ENCODERS, *DECODERS) if {"sliding_window", "local_attention"} & {*each[1]}]


def tiny(family: str, settings: dict[str, Any], kind: Any = AutoModelForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind.from_config(AutoConfig.for_model(family, **{**SMALL, **settings})).eval()


@pytest.fixture(scope="module")
def encoder_of(bert: Path, llama: Path) -> Callable[[Any], PairEncoder]:
    """The pair encoder of a scorer; ``offset`` is where its positions begin."""
    encoders = [PairEncoder.load(directory) for directory in (bert, llama)]

    def chosen(model: Any, offset: int = 0) -> PairEncoder:
        encoder = encoders[is_decoder(model)]
        return PairEncoder(encoder._tokenizer, replace(encoder.config, position_offset=offset))

    return chosen


def inputs_of(model: Any, pair: Pair) -> dict[str, torch.Tensor]:
    """A pair alone, for the class's own forward."""
    inputs = {"input_ids": torch.from_numpy(pair.token_ids)[None].long()}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(len(pair.token_ids)) >= pair.document_start).long()[None]
    return inputs


@pytest.mark.parametrize(("family", "settings"), [*ENCODERS, *DECODERS])
def test_families_that_pack(family: str, settings: dict[str, Any], encoder_of: Callable[..., PairEncoder]) -> None:
    """Pairs of every length up to the longest, several in a row, next to the class's own forward."""
    model = tiny(family, settings)
    encoder = encoder_of(model, position_offset(model))
    check_packing(model, encoder, family)
    pairs = encoder.encode("river", DOCUMENTS)
    lengths = [len(pair.token_ids) for pair in pairs]
    assert min(lengths) < LONGEST // 2 < max(lengths) == LONGEST
    together = PackedScorer(model).score(encoder.pack(pairs))
    assert together.std() > 1e-3
    for pair, score in zip(pairs, together, strict=True):
        with torch.inference_mode():
            assert model(**inputs_of(model, pair)).logits.item() == pytest.approx(score, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize(("family", "settings"), ENCODERS)
def test_late_interaction_begins_as_the_soft_maximum_of_a_bi_encoder(
    family: str, settings: dict[str, Any], encoder_of: Callable[..., PairEncoder], tmp_path: Path
) -> None:
    """Query and document do not see each other; the document sees the start token. Scores are as standardised ones."""
    model = tiny(family, settings)
    encoder = encoder_of(model, position_offset(model))
    give_late_interaction(model)
    model.save_pretrained(tmp_path)
    loaded = load_for_training(tmp_path, allow_new_head=False)
    check_packing(loaded, encoder, family)
    pairs = encoder.encode("river", DOCUMENTS)
    together = PackedScorer(loaded).score(encoder.pack(pairs))
    assert together.std() > 1e-3
    for pair, score in zip(pairs, together, strict=True):
        inputs, start = inputs_of(model, pair), pair.document_start
        seen_LL = torch.zeros(2 * (len(pair.token_ids),), dtype=torch.bool)
        seen_LL[:start, :start] = seen_LL[start:, start:] = seen_LL[:, 0] = True
        places = torch.arange(len(pair.token_ids))
        masks = {
            kind: torch.where(seen_LL & ((places[:, None] - places).abs() < (reach or 1000)), 0.0, MASKED)[None, None]
            for kind, reach in reach_of_layers(model.config).items()
        }
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        with torch.inference_mode():
            query_QH = model.base_model(**{name: row[:, :start] for name, row in inputs.items()}).last_hidden_state[0]
            document_DH = model.base_model(**inputs, attention_mask=mask).last_hidden_state[0, start:]
        cosines_QD = torch.cosine_similarity(query_QH[:, None], document_DH[None], dim=-1)
        soft_maxima_Q = torch.log(torch.exp(20 * cosines_QD).sum(1)) / 20
        assert 5 * soft_maxima_Q.mean() - 2.5 == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"),
    # Gemma 2 caps its logits, Granite scales them.
    [*DECODERS, ("gemma2", {**GROUPED, "final_logit_softcapping": 1.0}), ("granite", {"logits_scaling": 8.0})],
)
def test_language_models_of_every_decoder_pack(family: str, settings: dict[str, Any], llama: Path) -> None:
    check_packing(tiny(family, settings, AutoModelForCausalLM), PairEncoder.load(llama), family)


def test_a_language_model_whose_logits_are_scaled_in_an_unknown_way_is_refused(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="cohere model differ from scores alone"):
        model = tiny("cohere", {"logit_scale": 0.5}, AutoModelForCausalLM)
        check_packing(model, PairEncoder.load(llama), "cohere")


def window_of(family: str) -> str:
    return "local_attention" if family == "modernbert" else "sliding_window"


def test_every_family_with_windows_is_tried() -> None:
    assert {family for family, _ in WINDOWED} == ONE_MASK | MASK_OF_KIND


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_a_window_that_is_left_out_is_found(
    family: str, settings: dict[str, Any], encoder_of: Callable[..., PairEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a checkpoint is loaded, a mask that joins all tokens of a long pair is seen to be wrong."""
    model = tiny(family, settings)
    monkeypatch.setattr(forward, "reach_of_layers", lambda config: dict.fromkeys(reach_of_layers(config)))
    with pytest.raises(CheckpointError, match=f"{family} model differ from scores alone"):
        check_packing(model, encoder_of(model), family)


@pytest.mark.parametrize(("family", "settings"), WINDOWED)
def test_the_windows_numbers_are_those_of_transformers(family: str, settings: dict[str, Any]) -> None:
    """A text of as many tokens as the window scores as if there were none; one token more, and it does not."""
    model, wide = tiny(family, settings), tiny(family, {**settings, window_of(family): 1000})
    window = narrowest_window(model.config)
    assert window is not None and window.tokens == WINDOW
    first = torch.full((1, 1), 7)
    tokens = torch.randint(10, 390, (1, WINDOW), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for each, same in ((tokens, True), (torch.cat([first, tokens], dim=1), False)):
            body, without = (net.base_model(each).last_hidden_state for net in (model, wide))
            assert torch.allclose(body, without, atol=1e-5) == same


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


NO_MASK = "a {family} model cannot be packed: its attention takes no mask"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("deberta-v2", {}, NO_MASK),
    ("deberta", {}, NO_MASK),
    ("bloom", {"n_head": 4, "n_layer": 2}, NO_MASK),
    ("falcon", {"alibi": True}, NO_MASK),
    ("t5", {}, "a t5 model cannot be packed: ValueError: You must specify"),
    ("eurobert", {"num_key_value_heads": 4, "classifier_pooling": "late"}, "'late' of this eurobert model is not"),
    ("bert", {"pair_pooling": "means"}, "the \"pair_pooling\" 'means' is not known"),
    ("bert", {"pair_pooling": "late_interaction"}, 'needs a "pair_sharpness" above 0 in config.json, not None'),
    ("bert", {"pair_pooling": "late_interaction", "pair_sharpness": 0}, "above 0 in config.json, not 0"),
    ("bert", {"vocab_size": 20}, "the model knows 20 tokens"),
    ("bert", {"max_position_embeddings": 40}, f"max_pair_tokens {LONGEST} is above the model's 40 positions"),
    ("roberta", {"pad_token_id": 1}, "roberta model begin at 2, and pair_encoding.json says position_offset 0: make"),
    ("llama", {"pad_token_id": 3}, "pad_token_id and the end of a pair are both token 3"),
    (
        "phimoe",
        {**SEEN, "sliding_window": LONGEST - 1},
        f"max_pair_tokens {LONGEST} is above the {LONGEST - 1} tokens that the sliding window of this phimoe model "
        "sees (sliding_window)",
    ),
]


@pytest.mark.parametrize(("family", "settings", "message"), REFUSED)
def test_what_packing_would_score_wrongly_is_refused_by_name(
    family: str, settings: dict[str, Any], message: str, encoder_of: Callable[..., PairEncoder]
) -> None:
    model = tiny(family, settings)
    with pytest.raises(CheckpointError) as refusal:
        check_packing(model, encoder_of(model), "base")
    assert str(refusal.value).startswith("base: ")
    assert message.format(family=family) in str(refusal.value)


def test_positions_that_begin_elsewhere_leave_fewer(encoder_of: Callable[..., PairEncoder]) -> None:
    """RoBERTa begins at 2."""
    model = tiny("roberta", {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2})
    check_packing(model, encoder_of(model, 2), "base")
    short = tiny("roberta", {"pad_token_id": 1, "max_position_embeddings": LONGEST + 1})
    with pytest.raises(CheckpointError, match=f"{LONGEST} is above the model's {LONGEST - 1} positions"):
        check_packing(short, encoder_of(short, 2), "base")


@pytest.mark.parametrize("make", [tiny_bert, tiny_modernbert, tiny_roberta, tiny_xlm_roberta])
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
