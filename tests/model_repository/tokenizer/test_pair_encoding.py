from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from model_repository.tokenizer.pair_encoding import (
    Document,
    EncodedPair,
    EncodingError,
    PairEncoder,
    PairEncodingConfig,
    encoding_hash,
    pack,
    unpack,
)
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, tiny_xlm_roberta

TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # any code point, lone surrogates too
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def xlm_roberta(tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(tiny_xlm_roberta(tmp_path_factory.mktemp("xlm_roberta")))


def pairs_of(lengths: list[int]) -> list[EncodedPair]:
    """Pairs whose tokens name their pair: 1000 * pair + place."""
    return [
        EncodedPair(np.arange(1000 * index, 1000 * index + length, dtype=np.int32), length // 2, False)
        for index, length in enumerate(lengths)
    ]


@given(LENGTHS, st.integers(1, 8), st.booleans(), st.sampled_from([0, 2]))
def test_every_token_is_packed_once_and_the_order_comes_back(
    lengths: list[int], slots: int, pool_last: bool, offset: int
) -> None:
    pairs = pairs_of(lengths)
    batch = pack(pairs, 40, slots, pool_last=pool_last, position_offset=offset)
    assert not batch.position_ids[batch.segment_ids == 0].any()
    assert batch.input_ids.shape[1] == 40
    packed = batch.input_ids[batch.segment_ids > 0]
    assert sorted(packed) == sorted(np.concatenate([pair.token_ids for pair in pairs]))
    for pair, slot in zip(pairs, batch.slots, strict=True):
        row, place = divmod(int(slot), slots)
        tokens = batch.segment_ids[row] == place + 1
        assert np.array_equal(batch.input_ids[row, tokens], pair.token_ids)
        assert np.array_equal(batch.position_ids[row, tokens], np.arange(len(pair.token_ids)) + offset)
        assert batch.token_type_ids[row, tokens].sum() == (
            0 if pool_last else len(pair.token_ids) - pair.document_start
        )
        pooled = batch.input_ids[row, batch.pool_positions[row, place]]
        assert pooled == pair.token_ids[-1 if pool_last else 0]


@given(LENGTHS, st.integers(1, 8))
def test_unpack_returns_scores_in_the_callers_order(lengths: list[int], slots: int) -> None:
    batch = pack(pairs_of(lengths), 40, slots, pool_last=False)
    first_tokens = np.take_along_axis(batch.input_ids, batch.pool_positions, axis=1).astype(np.float32)
    assert unpack(first_tokens, batch.slots).tolist() == [1000.0 * index for index in range(len(lengths))]


@given(LENGTHS, st.integers(1, 8))
def test_each_pair_goes_into_the_first_row_with_room(lengths: list[int], slots: int) -> None:
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [row for row in rows if len(row) < slots and sum(lengths[one] for one in row) + lengths[index] <= 40]
        if not fitting:
            rows.append([])
        (fitting or rows[-1:])[0].append(index)
    slot_of = {index: number * slots + row.index(index) for number, row in enumerate(rows) for index in row}
    packed = pack(pairs_of(lengths), 40, slots, pool_last=False)
    assert packed.slots.tolist() == [slot_of[index] for index in range(len(lengths))]


@given(LENGTHS)
def test_first_fit_decreasing_wastes_less_than_half(lengths: list[int]) -> None:
    rows = pack(pairs_of(lengths), 40, 64, pool_last=False).input_ids.shape[0]
    assert rows <= 2 * sum(lengths) / 40 + 1


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(EncodingError, match="pair 1 has 41 tokens; a row has 40"):
        pack(pairs_of([3, 41]), 40, 4, pool_last=False)
    with pytest.raises(EncodingError, match="no pairs"):
        pack([], 40, 4, pool_last=False)


@settings(deadline=None)
@given(TEXT.filter(lambda text: text.strip()), st.lists(st.builds(Document, TEXT, TEXT), min_size=1, max_size=4))
def test_any_unicode_encodes_within_the_limit(
    bert: PairEncoder, llama: PairEncoder, xlm_roberta: PairEncoder, query: str, documents: list[Document]
) -> None:
    for encoder, ends in ((bert, 2), (llama, 1), (xlm_roberta, 3)):
        pairs = encoder.encode(query, documents)
        assert len(pairs) == len(documents)
        end = encoder._control_id(encoder.config.end_token)
        for pair in pairs:
            assert len(pair.token_ids) <= encoder.config.max_pair_tokens
            assert pair.token_ids[-1] == end
            assert np.count_nonzero(pair.token_ids == end) == ends


def test_encoder_style_is_cls_query_sep_document_sep(bert: PairEncoder) -> None:
    (pair,) = bert.encode("river bridge", [Document("silver", "copper forest")])
    tokens = [bert._tokenizer.id_to_token(token) for token in pair.token_ids]
    assert tokens == ["[CLS]", "river", "bridge", "[SEP]", "silver", "copper", "forest", "[SEP]"]
    assert pair.document_start == 4


def test_roberta_has_two_separators_and_they_count(tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny_roberta(tmp_path / "roberta"))
    short, long = encoder.encode("river", [Document("silver", ""), Document("silver " * 100, "")])
    tokens = [str(encoder._tokenizer.id_to_token(token)) for token in short.token_ids]
    assert "".join(tokens) == "<s>river</s></s>silver</s>"
    assert tokens[short.document_start - 2 : short.document_start] == ["</s>", "</s>"]
    assert len(long.token_ids) == encoder.config.max_pair_tokens
    first = encoder.pack([short]).position_ids[0]
    assert first[: len(tokens)].tolist() == list(range(2, len(tokens) + 2))


def test_settings_of_before_there_were_separators_and_offsets_stay_readable(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path / "bert")
    path = directory / "pair_encoding.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({name: now[name] for name in now if name not in ("separators", "position_offset")}))
    config = PairEncoder.load(directory).config
    assert (config.separators, config.position_offset) == (1, 0)


def test_decoder_style_ends_with_the_end_token_even_when_cut(llama: PairEncoder) -> None:
    (pair,) = llama.encode("river", [Document("silver", "copper forest " * 100)])
    assert pair.truncated
    assert len(pair.token_ids) == llama.config.max_pair_tokens
    assert llama._tokenizer.id_to_token(pair.token_ids[-1]) == llama.config.end_token


def test_the_document_is_cut_and_the_query_only_above_its_limit(bert: PairEncoder) -> None:
    limit = bert.config.max_query_tokens
    query = " ".join(["river"] * limit)
    fitting, long = bert.encode(query, [Document("silver", ""), Document("silver " * 100, "")])
    assert (fitting.truncated, long.truncated) == (False, True)
    assert fitting.document_start == long.document_start == limit + 2
    (longer,) = bert.encode(query + " river", [Document("silver", "")])
    assert longer.truncated
    assert np.array_equal(longer.token_ids, fitting.token_ids)


def test_empty_title_and_summary_leave_the_query(bert: PairEncoder) -> None:
    empty, title, summary = bert.encode("river", [Document("", ""), Document("bread", ""), Document("", "bread")])
    assert len(empty.token_ids) == 4
    assert np.array_equal(title.token_ids, summary.token_ids)


@pytest.mark.parametrize("text", ["[CLS] [SEP] [PAD] [MASK]", "a[SEP]b", "</s> <s> <pad>", "x</s>", "<mask>"])
def test_text_never_becomes_a_control_token(
    bert: PairEncoder, llama: PairEncoder, xlm_roberta: PairEncoder, text: str
) -> None:
    for encoder in (bert, llama, xlm_roberta):
        (plain,) = encoder.encode("river", [Document("bread", "")])
        (spelt,) = encoder.encode(text, [Document(text, text)])
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


def test_requests_that_cannot_be_encoded_are_refused(bert: PairEncoder) -> None:
    document = Document("bread", "")
    with pytest.raises(EncodingError, match="query is empty"):
        bert.encode("  ", [document])
    with pytest.raises(EncodingError, match="0 documents; a request takes 1 to 40"):
        bert.encode("river", [])
    with pytest.raises(EncodingError, match="41 documents"):
        bert.encode("river", [document] * 41)
    with pytest.raises(EncodingError, match="document 1 has 1000001 bytes"):
        bert.encode("river", [document, Document("x" * 1_000_001, "")])
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
