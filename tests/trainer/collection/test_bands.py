"""Candidates by bands: as many of each as was asked for, none twice, and the query's own document."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.collection.bands import Bands, draw_candidates, with_candidates
from trainer.collection.queries import Query
from trainer.data.records import DataError, JudgedDocument


@given(
    st.integers(1, 40),
    st.tuples(st.floats(0.1, 5), st.floats(0, 5), st.floats(0, 5)),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(1, 30),
    st.data(),
)
def test_candidates_are_in_their_bands(
    candidates: int, shares: tuple[float, float, float], near: int, middle: int, far: int, data: st.DataObject
) -> None:
    depths, documents = (near, near + middle), near + middle + far
    try:
        bands = Bands.of(candidates, shares, depths, documents)
    except DataError:
        return
    counts = (bands.near, bands.middle, bands.far)
    assert sum(counts) == candidates
    assert all(abs(count - candidates * share / sum(shares)) <= 1 for count, share in zip(counts, shares, strict=True))
    order = np.array(data.draw(st.permutations(range(documents))))
    source = data.draw(st.none() | st.integers(0, documents - 1))
    places = draw_candidates(order, source, bands, random.Random(0))
    assert len({*places}) == len(places) == candidates
    assert source is None or places[0] == source
    ranks = [[place for place in order.tolist() if place != source].index(place) for place in places if place != source]
    in_bands = np.searchsorted([near, near + middle], ranks, side="right").tolist()
    own = [] if source is None else [0]
    assert [*own, *in_bands] == [0] * bands.near + [1] * bands.middle + [2] * bands.far


def test_thirds_are_even_and_a_band_may_be_left_out() -> None:
    assert Bands.of(24, [1, 1, 1], [20, 500], 600) == Bands(8, 8, 8, 20, 500)
    assert Bands.of(10, [1, 1, 1], [20, 500], 600) == Bands(3, 4, 3, 20, 500)
    assert Bands.of(10, [1, 0, 1], [20, 20], 600) == Bands(5, 0, 5, 20, 20)


@pytest.mark.parametrize(
    ("candidates", "shares", "depths", "documents", "message"),
    [
        (24, [1, 1], [20, 500], 600, "--shares are three numbers"),
        (24, [0, 1, 1], [20, 500], 600, "--shares are three numbers"),
        (24, [1, 1, float("nan")], [20, 500], 600, "--shares are three numbers"),
        (24, [1, 1, 1], [20], 600, "--depths are two ranks"),
        (24, [1, 1, 1], [30, 20], 600, "--depths are two ranks"),
        (1, [1, 1, 9], [20, 500], 600, "leave no near one"),
        (24, [1, 1, 1], [7, 500], 600, "have no room for 8 near and 8 middle"),
        (24, [1, 1, 1], [20, 27], 600, "have no room for 8 near and 8 middle"),
        (24, [1, 1, 1], [20, 500], 508, "need more than 508 documents; there are 508"),
    ],
)
def test_bands_that_do_not_fit_are_refused(
    candidates: int, shares: list[float], depths: list[int], documents: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Bands.of(candidates, shares, depths, documents)


def test_equal_similarities_are_in_the_order_of_the_documents() -> None:
    """BM25 has many, and a sort that is not stable would order them as the processor likes."""
    documents = [JudgedDocument(f"d{place}", "", "", None, 0) for place in range(2000)]
    bands = Bands(near=5, middle=0, far=0, near_depth=5, middle_depth=5)
    queries = [Query("q", "a", "real", None), Query("r", "b", "real", None)]
    similarities = lambda texts: np.zeros((len(texts), 2000), np.float32)  # noqa: E731
    groups = [group for group, _ in with_candidates(queries, documents, similarities, bands, 0)]
    assert [{each.doc_id for each in group.documents} for group in groups] == [{f"d{place}" for place in range(5)}] * 2
    assert groups[0].documents != groups[1].documents
