"""Which documents are joined as near duplicates, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from trainer.preparation.documents import one_of_each, shingles
from trainer.preparation.engine import Engine
from trainer.preparation.ledger import Ledger

NEAR = 0.8


def kept(texts: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The id that each id has after the documents are joined."""
    with closing(Engine(folder, "500MB", 1)) as engine:
        engine.run("CREATE TABLE texts (document VARCHAR, title VARCHAR, summary VARCHAR, from_log BOOLEAN, n BIGINT)")
        engine.run("CREATE TABLE impressions (document VARCHAR, n BIGINT)")
        rows = [[*texts], [""] * len(texts), [*texts.values()], [False] * len(texts), [1] * len(texts)]
        engine.insert("texts", pa.table(rows, names=list("abcde")))
        one_of_each(engine, Ledger(engine), NEAR)
        return dict(engine.run("SELECT alias, document FROM kept"))


def test_a_document_joins_one_that_resembles_it_and_stays_itself(tmp_path: Path) -> None:
    """Each text of the chain resembles the one before it, the last one hardly the first."""
    words = [f"word{number}" for number in range(70)]
    texts = {f"d{step}": " ".join(words[3 * step : 3 * step + 46]) for step in range(8)}
    found = kept(texts, tmp_path)
    own = {document: {*shingles(text)} for document, text in texts.items()}
    joined = {document: first for document, first in found.items() if document != first}
    assert 2 <= len(joined) <= 6
    for document, first in joined.items():
        assert found[first] == first
        common = own[document] & own[first]
        assert len(common) >= NEAR * len(own[document] | own[first])


def test_texts_without_words_are_one_only_where_they_are_equal(tmp_path: Path) -> None:
    found = kept({"a": "★★★", "b": "!!!", "c": "★★★", "d": "words"}, tmp_path)
    assert found == {"a": "a", "b": "b", "c": "a", "d": "d"}
