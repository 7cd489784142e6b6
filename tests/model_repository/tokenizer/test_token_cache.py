"""Whatever was asked for before, documents have the ids that they would have without a cache."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from model_repository.tokenizer.token_cache import TokenCache
from tests.support.checkpoints import tiny_bert, tiny_xlm_roberta

REQUESTS = st.lists(st.lists(st.sampled_from("abcdefgh") | st.just(""), min_size=1, max_size=8), max_size=12)


class Tokeniser:
    """A text's bytes, each twice, as its ids; remembers which texts it was asked for."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts, self.asked = texts, list[bytes]()

    def __call__(self, places: Sequence[int]) -> list[bytes]:
        self.asked += [self.texts[place] for place in places]
        return [self.texts[place] * 2 for place in places]


def ask(cache: TokenCache, *texts: bytes) -> list[bytes]:
    """The texts that the cache did not hold; its answers are checked on the way."""
    tokenise = Tokeniser(texts)
    assert cache.get(texts, tokenise) == [text * 2 for text in texts]
    return tokenise.asked


@given(REQUESTS, st.sampled_from([0, 300, 700, 10**6]))
def test_answers_are_those_of_the_tokeniser_at_any_capacity(requests: list[list[str]], capacity: int) -> None:
    cache = TokenCache(capacity)
    for texts in requests:
        ask(cache, *(text.encode() for text in texts))
        assert cache.bytes <= capacity
    assert cache.lookups == sum(map(len, requests))


def test_the_least_recently_used_goes_first() -> None:
    cache = TokenCache(0)
    ask(cache, b"x")
    assert (cache.bytes, cache.hits) == (0, 0)
    cache = TokenCache(3 * 250)  # three entries
    assert ask(cache, b"a", b"b", b"c") == [b"a", b"b", b"c"]
    assert ask(cache, b"a") == []
    assert ask(cache, b"d", b"d") == [b"d"]  # in the place of b
    assert ask(cache, b"a", b"c", b"d", b"b") == [b"b"]
    assert (cache.lookups, cache.hits) == (10, 5)


def test_a_document_without_tokens_is_held() -> None:
    cache = TokenCache(1000)
    assert ask(cache, b"") == [b""]
    assert ask(cache, b"", b"") == []


def test_an_error_leaves_the_cache_as_it_was() -> None:
    cache = TokenCache(1000)
    ask(cache, b"a")

    def fail(places: Sequence[int]) -> list[bytes]:
        raise ValueError("not UTF-8")

    with pytest.raises(ValueError, match="not UTF-8"):
        cache.get([b"a", b"\xff"], fail)
    assert (cache.lookups, cache.hits) == (1, 0)
    assert ask(cache, b"a") == []


def test_it_takes_no_more_memory_than_it_says() -> None:
    def passage(places: Sequence[int]) -> list[bytes]:
        return [bytes(bytearray(160)) for _ in places]  # new objects, 80 ids of two bytes each

    tracemalloc.start()
    try:
        cache = TokenCache(4_000_000)
        for number in range(0, 20_000, 500):
            cache.get([f"{number + one}".encode() for one in range(500)], passage)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 3_900_000 < cache.bytes <= 4_000_000
    assert 0.7 * cache.bytes < used < 1.1 * cache.bytes


@pytest.fixture(scope="module", params=[tiny_bert, tiny_xlm_roberta])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PairEncoder:
    return PairEncoder.load(request.param(tmp_path_factory.mktemp("encoder") / "checkpoint"))


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(["", "river", "市场", "🚀 [SEP]", "copper " * 60, "a\x00b"]), max_size=6)))
def test_cached_ids_make_the_pairs_of_the_encoder(encoder: PairEncoder, requests: list[list[str]]) -> None:
    """The types and bytes that the server keeps lose nothing, whether a document was cut included."""
    cache = TokenCache(1_000)
    for texts in filter(None, requests):

        def tokenise(places: Sequence[int], texts: list[str] = texts) -> list[bytes]:
            ids = encoder.tokenise([texts[place] for place in places])
            return [one.astype(encoder.id_type).tobytes() for one in ids]

        held = cache.get([text.encode() for text in texts], tokenise)
        arrays = [np.frombuffer(ids, dtype=encoder.id_type).astype(np.int32) for ids in held]
        wanted = encoder.document_ids([Document(title=text, summary="") for text in texts])
        assert [array.tolist() for array in arrays] == [
            part.tolist() for part in np.split(wanted.token_ids, np.cumsum(wanted.lengths)[:-1])
        ]
