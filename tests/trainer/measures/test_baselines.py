from __future__ import annotations

import pytest
import Stemmer

from trainer.data.records import JudgedDocument, QueryGroup
from trainer.measures.baselines import Bm25, tokenised


def group(query_id: str, query: str, **texts: str) -> QueryGroup:
    documents = [JudgedDocument(name, "", text, None, 0) for name, text in texts.items()]
    return QueryGroup(query_id, query, tuple(documents))


def test_a_text_belongs_to_a_query_and_not_to_an_id() -> None:
    groups = [
        group("bicycle", "bicycle", a="a red bicycle", b="a black piano"),
        group("piano", "piano", a="a black piano", b="a red bicycle"),
    ]
    for scores in Bm25(groups).scores(groups).values():
        assert scores["a"] > scores["b"] == 0.0


@pytest.mark.parametrize(
    ("query", "relevant", "other"),
    [
        ("running shoes", "the shoe that runs", "the coat that dries"),  # stems
        ("北京天气", "今天北京的天气很好", "上海地铁线路图"),
        ("東京の天気", "天気は東京で晴れ", "大阪の地下鉄"),
        ("ราคาทอง", "วันนี้ราคาทองขึ้น", "ฝนตกหนัก"),
        ("서울 날씨", "서울 날씨 예보", "부산 지하철"),
        ("погода москва", "погода москва сегодня", "метро казань"),
        ("\uff23\uff41\uff46\u00e9", "cafe\u0301", "bar"),  # other widths, an accent that is a character of its own
    ],
)
def test_bm25_ranks_in_every_script(query: str, relevant: str, other: str) -> None:
    one = group("q", query, other=other, relevant=relevant)
    scores = Bm25([one]).scores([one])["q"]
    assert scores["relevant"] > scores["other"]


def test_statistics_are_those_of_all_documents() -> None:
    """A word that every candidate has says nothing of the collection."""
    one = group("q", "old harbor", old="old town", harbor="harbor town")
    rare = [group(str(number), "x", d=f"old thing {number}") for number in range(20)]
    alone, among = (Bm25(groups).scores([one])["q"] for groups in ([one], [one, *rare]))
    assert alone["old"] == alone["harbor"]
    assert among["old"] < among["harbor"]


def test_tokens() -> None:
    stemmer = Stemmer.Stemmer("english")
    assert tokenised("The Runners were RUNNING 3,5 km", stemmer) == ["runner", "were", "run", "3", "5", "km"]
    assert tokenised("iPhone手机壳 x", stemmer) == ["iphon", "手机", "机壳", "x"]
    assert tokenised("壳 ?! _", stemmer) == ["壳"]
