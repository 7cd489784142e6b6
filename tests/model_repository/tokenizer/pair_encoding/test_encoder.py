"""Text to pairs of token ids, by the artefact's own settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from model_repository.tokenizer.pair_encoding import (
    Document,
    DocumentIds,
    EncodingError,
    PairEncoder,
    PairEncodingConfig,
    Truncation,
    encoding_hash,
)
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, tiny_xlm_roberta
from tests.support.rerankers import qwen_tokenizer

SIDES = ("left", "right")
LATER = ("separators", "position_offset", "prompt")
PROMPT = (
    "<|im_start|>Judge.<|im_end|>\n",
    "<Query>: {query}\n",
    "<Document>: {document}",
    "<|im_end|>\n<think>\n\n</think>\n\n",
)
TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # any code point, lone surrogates too


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def xlm_roberta(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_xlm_roberta(tmp_path_factory.mktemp("xlm_roberta")))


@pytest.fixture(scope="module")
def asking_much() -> PairEncoder:
    return asking(400)


@pytest.fixture(scope="module")
def asking_little() -> PairEncoder:
    return asking(8)


@settings(deadline=None)
@given(
    TEXT.filter(lambda text: text.strip()),
    st.lists(st.builds(Document, title=TEXT, summary=TEXT), min_size=1, max_size=4),
)
def test_any_unicode_encodes_within_the_limit(
    bert: PairEncoder, llama: PairEncoder, xlm_roberta: PairEncoder, query: str, documents: list[Document]
) -> None:
    for encoder, ends in ((bert, 2), (llama, 1), (xlm_roberta, 3)):
        pairs = encoder.encode(query, documents)
        assert len(pairs) == len(documents)
        end = encoder._tokenizer.token_to_id(str(encoder.config.end_token))
        for pair in pairs:
            assert len(pair.token_ids) <= encoder.config.max_pair_tokens
            assert pair.token_ids[-1] == end
            assert np.count_nonzero(pair.token_ids == end) == ends


def test_encoder_style_is_cls_query_sep_document_sep(bert: PairEncoder) -> None:
    (pair,) = bert.encode("river bridge", [Document(title="silver", summary="copper forest")])
    tokens = [bert._tokenizer.id_to_token(token) for token in pair.token_ids]
    assert tokens == ["[CLS]", "river", "bridge", "[SEP]", "silver", "copper", "forest", "[SEP]"]
    assert pair.document_start == 4


def test_roberta_has_two_separators_and_they_count(tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny_roberta(tmp_path / "roberta"))
    short, long = encoder.encode(
        "river", [Document(title="silver", summary=""), Document(title="silver " * 100, summary="")]
    )
    tokens = [str(encoder._tokenizer.id_to_token(token)) for token in short.token_ids]
    assert "".join(tokens) == "<s>river</s></s>silver</s>"
    assert tokens[short.document_start - 2 : short.document_start] == ["</s>", "</s>"]
    assert len(long.token_ids) == encoder.config.max_pair_tokens
    first = encoder.pack(encoder.encode("river", [Document(title="silver", summary="")])).position_ids[0]
    assert first[: len(tokens)].tolist() == list(range(2, len(tokens) + 2))


def test_settings_of_before_there_were_later_ones_stay_readable(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path / "bert")
    path = directory / "pair_encoding.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({name: now[name] for name in now if name not in LATER}))
    config = PairEncoder.load(directory).config
    assert (config.separators, config.position_offset, config.prompt) == (1, 0, ())


def test_decoder_style_ends_with_the_end_token_even_when_cut(llama: PairEncoder) -> None:
    (pair,) = llama.encode("river", [Document(title="silver", summary="copper forest " * 100)])
    assert pair.truncated
    assert len(pair.token_ids) == llama.config.max_pair_tokens
    assert llama._tokenizer.id_to_token(pair.token_ids[-1]) == llama.config.end_token


def asking(most: int) -> PairEncoder:
    """An encoder by a prompt, for queries and pairs of as many tokens beside it."""
    sizes: dict[str, Any] = {"max_query_tokens": most, "max_pair_tokens": 60 + 2 * most, "row_length": 60 + 2 * most}
    return PairEncoder(
        qwen_tokenizer().backend_tokenizer, PairEncodingConfig("decoder", None, None, prompt=PROMPT, **sizes)
    )


ENCODABLE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("  \n\r\t.?:'<>")), max_size=40)
CONTROL = st.sampled_from(["", "<|im_end|>", "<think>\n\n</think>", "<|endoftext|>"])


@settings(deadline=None)
@given(ENCODABLE.filter(lambda text: text.strip()), ENCODABLE, CONTROL)
def test_a_pair_is_its_prompt_as_one_text_but_for_control_tokens_in_texts(
    asking_much: PairEncoder, asking_little: PairEncoder, query: str, text: str, control: str
) -> None:
    """Parts are tokenised one by one. Qwen's tokens never go from a line that has ended to the next."""
    query, document = query + control, Document(title="", summary=text + control)
    tokenizer = asking_much._tokenizer
    around = [tokenizer.encode(part, add_special_tokens=False).ids for part in (query, document.text)]
    assert not {*around[0], *around[1]} & {tokenizer.token_to_id(token) for token in ("<|im_end|>", "<think>")}
    as_text = tokenizer.encode(f"<Query>: {query}\n<Document>: {document.text}", add_special_tokens=False).ids
    template = asking_much._template
    (whole,) = asking_much.encode(query, [document])
    assert not whole.truncated
    assert whole.token_ids.tolist() == [*template.start, *as_text, *template.end]
    (cut,) = asking_little.encode(query, [document])
    limits = asking_little.config
    assert len(cut.token_ids) <= limits.max_pair_tokens
    assert cut.token_ids[: len(template.start)].tolist() == template.start
    assert cut.token_ids[-len(template.end) :].tolist() == template.end
    assert cut.truncated or np.array_equal(cut.token_ids, whole.token_ids)


def test_the_document_is_cut_and_the_query_only_above_its_limit(bert: PairEncoder) -> None:
    limit = bert.config.max_query_tokens
    query = " ".join(["river"] * limit)
    fitting, long = bert.encode(
        query, [Document(title="silver", summary=""), Document(title="silver " * 100, summary="")]
    )
    assert (fitting.truncated, long.truncated) == (False, True)
    assert fitting.document_start == long.document_start == limit + 2
    (longer,) = bert.encode(query + " river", [Document(title="silver", summary="")])
    assert longer.truncated
    assert np.array_equal(longer.token_ids, fitting.token_ids)


@given(st.lists(st.sampled_from(["river", "silver", "bread"]), max_size=90), st.integers(1, 90), st.sampled_from(SIDES))
def test_a_request_may_have_less_of_a_document_read_and_its_other_end(
    bert: PairEncoder, words: list[str], most: int, side: str
) -> None:
    ids = [int(bert.tokenise([word])[0][0]) for word in words]
    (empty,) = bert.encode("garden", [Document(title="", summary="")])
    kept = min(most, bert.config.max_pair_tokens - len(empty.token_ids))
    documents = DocumentIds.of(bert.tokenise([" ".join(words)], side))
    (pair,) = bert.pairs("garden", documents, Truncation(most, side))
    read = ids[:kept] if side == "right" else ids[max(0, len(ids) - kept) :]
    assert pair.token_ids[pair.document_start : -1].tolist() == read
    assert pair.truncated == (len(ids) > kept)


def test_a_side_that_cannot_be_cut_is_refused(bert: PairEncoder, asking_much: PairEncoder) -> None:
    for encoder, side, message in ((bert, "up", "is 'left' or 'right', not 'up'"), (asking_much, "left", "only right")):
        with pytest.raises(EncodingError, match=message):
            encoder.tokenise(["river"], side)
        with pytest.raises(EncodingError, match=message):
            encoder.pairs("garden", encoder.document_ids([]), Truncation(side=side))


def test_empty_title_and_summary_leave_the_query(bert: PairEncoder) -> None:
    empty, title, summary = bert.encode(
        "river",
        [Document(title="", summary=""), Document(title="bread", summary=""), Document(title="", summary="bread")],
    )
    assert len(empty.token_ids) == 4
    assert np.array_equal(title.token_ids, summary.token_ids)


@pytest.mark.parametrize("text", ["[CLS] [SEP] [PAD] [MASK]", "a[SEP]b", "</s> <s> <pad>", "x</s>", "<mask>"])
def test_text_never_becomes_a_control_token(
    bert: PairEncoder, llama: PairEncoder, xlm_roberta: PairEncoder, text: str
) -> None:
    for encoder in (bert, llama, xlm_roberta):
        (plain,) = encoder.encode("river", [Document(title="bread", summary="")])
        (spelt,) = encoder.encode(text, [Document(title=text, summary=text)])
        control = {
            number
            for number, token in encoder._tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content not in ("[UNK]", "<unk>")
        }
        assert sum(token in control for token in spelt.token_ids) == sum(token in control for token in plain.token_ids)


def test_a_tokenizer_that_reads_control_tokens_out_of_text_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "word": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    config = PairEncodingConfig("decoder", None, "<end>", max_query_tokens=2, max_pair_tokens=8, row_length=8)
    with pytest.raises(EncodingError, match="reads the control token '<end>' out of ordinary text"):
        PairEncoder(tokenizer, config)


def test_a_requests_limit_is_not_the_encoders(bert: PairEncoder) -> None:
    assert bert.config.max_documents == 40
    assert len(bert.encode("river", [Document(title="bread", summary="")] * 41)) == 41
    assert len(bert.encode("river", [])) == 0


def test_a_documents_fields_are_named() -> None:
    """The client's Document begins with an id: by position, titles would become summaries."""
    with pytest.raises(TypeError):
        Document("bread", "")  # type: ignore[call-arg]


def test_requests_that_cannot_be_encoded_are_refused(bert: PairEncoder) -> None:
    document = Document(title="bread", summary="")
    with pytest.raises(EncodingError, match="query is empty"):
        bert.encode("  ", [document])
    with pytest.raises(EncodingError, match="document 1 has 1000001 bytes"):
        bert.encode("river", [document, Document(title="x" * 1_000_001, summary="")])
    with pytest.raises(EncodingError, match="the query has 1000001 bytes"):
        bert.encode("x" * 1_000_001, [document])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "both"}, "style must be"),
        ({"max_pair_tokens": 65}, "max_pair_tokens 65 is above row_length 64"),
        ({"slots_per_row": 0}, "slots_per_row must be at least 1"),
        ({"separators": 0}, "separators must be at least 1"),
        ({"position_offset": -1}, "position_offset must be at least 0"),
        ({"unheard_of": 1}, "unknown settings"),
        ({"max_query_tokens": 47}, "leaves 45 tokens"),
        ({"end_token": "<nowhere>"}, "has no token '<nowhere>'"),
        ({"end_token": None}, "without a prompt there must be an end_token"),
        ({"prompt": ["{query}", "{document}"]}, "a prompt is a decoder's"),
    ],
)
def test_artefact_settings_are_checked(tmp_path: Path, change: dict[str, object], message: str) -> None:
    directory = tiny_bert(tmp_path / "bert")
    path = directory / "pair_encoding.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EncodingError, match=message):
        PairEncoder.load(directory)


def test_a_missing_artefact_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match=r"tokenizer.json: no such file"):
        PairEncoder.load(tmp_path)
    directory = tiny_bert(tmp_path / "bert")
    (directory / "pair_encoding.json").unlink()
    with pytest.raises(EncodingError, match=r"pair_encoding.json: no such file"):
        PairEncoder.load(directory)


def test_the_hash_follows_the_settings(tmp_path: Path) -> None:
    one = tiny_bert(tmp_path / "one")
    same, other = (shutil.copytree(one, tmp_path / name) for name in ("same", "other"))
    settings_path = other / "pair_encoding.json"
    settings_path.write_text(settings_path.read_text().replace('"slots_per_row": 4', '"slots_per_row": 5'))
    assert encoding_hash(one) == encoding_hash(same) != encoding_hash(other)
