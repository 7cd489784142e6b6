"""Queries out of a document's words: what they are made of, in any script."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.collection.words import BEGUN, ENGLISH, begun, common_words, span, spans, titles, units
from trainer.data.records import JudgedDocument


def document(summary: str, title: str = "") -> JudgedDocument:
    return JudgedDocument("d", title, summary, None, 0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The iPhone's 3,5 km", ["the", "iphone", "s", "3", "5", "km"]),
        ("iPhone手机壳 x", ["iphone", "手", "机", "壳", "x"]),
        ("Погода ?! _", ["погода"]),
    ],
)
def test_units_are_words_or_characters(text: str, found: list[str]) -> None:
    assert units(text) == found


def test_common_words_are_those_of_the_collection() -> None:
    """In whatever language, and none in so few documents that their number says nothing."""
    documents = [document(f"der Fluss {number} 的") for number in range(20)] + [document("der Hund")] * 2
    assert common_words(documents, 0.95) == {"der"}
    assert common_words(documents, 0.05) == {"der", "fluss"}
    assert common_words(documents[:2], 0.05) == frozenset()


@given(st.lists(st.sampled_from(["river", "bridge", "река", "河", "桥", "市"]), min_size=2, max_size=30), st.integers())
def test_a_span_is_a_stretch_of_two_to_five_words(content: list[str], seed: int) -> None:
    """Two characters count as a word. Only a document with fewer gives less."""
    found = span(content, random.Random(seed))
    taken = units(found)
    assert any(content[at : at + len(taken)] == taken for at in range(len(content)))
    size = sum(0.5 if unit in "河桥市" else 1 for unit in taken)
    assert len(taken) >= 2 and size <= 5.5
    assert " " not in found or not {*content} <= {*"河桥市"}


def test_every_document_gives_spans_as_often_as_it_has_words() -> None:
    documents = [document("the silver river"), document("the market"), document("the old copper bridge garden")]
    made = list(spans(documents, {"the"}, [], random.Random(0)))
    places = [place for _, place in made]
    assert [places.count(place) for place in range(3)] == [2, 0, 4]
    assert sorted(places[:2]) == [0, 2]  # one of each before another of any
    assert all({*text.split()} <= {*units(documents[place].text)} - {"the"} for text, place in made)


@pytest.mark.parametrize(
    ("text", "beginnings", "allowed"),
    [
        ("silver river", None, ENGLISH),
        ("größe fluss 7", None, ENGLISH),  # the script is known, the language is not
        ("река мост", None, ()),
        ("长江大桥", None, ()),
        ("silver river", [], ()),
        ("река мост", ["что такое"], ["что такое"]),
    ],
)
def test_a_third_has_a_beginning_where_there_is_one_for_the_script(
    text: str, beginnings: list[str] | None, allowed: list[str]
) -> None:
    draw = random.Random(0)
    made = [begun(text, beginnings, draw) for _ in range(3000)]
    with_beginning = [each for each in made if each != text]
    assert {each.removesuffix(f" {text}") for each in with_beginning} == {*allowed}
    assert len(with_beginning) / len(made) == pytest.approx(BEGUN if allowed else 0, abs=0.04)


def test_titles_are_taken_once_and_as_they_are() -> None:
    documents = [document("x", "The  Old\nBridge"), document("x", "?!"), document("x"), document("y", "长江大桥")]
    assert sorted(titles(documents, random.Random(0))) == [("The Old Bridge", 0), ("长江大桥", 3)]


def test_what_is_drawn_first_does_not_depend_on_how_much_is_drawn() -> None:
    documents = [document(f"silver river bridge market {number}") for number in range(9)]
    few, many = (list(islice(spans(documents, frozenset(), None, random.Random(5)), size)) for size in (4, 30))
    assert many[:4] == few
