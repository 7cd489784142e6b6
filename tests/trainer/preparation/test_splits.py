"""Which queries nearly are held-out ones: the answer of the database against every pair compared in Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from itertools import product
from pathlib import Path

import pyarrow as pa

from trainer.data.resemblance import RESEMBLANCE, trigrams
from trainer.preparation.engine import Engine
from trainer.preparation.splits import LONG, near_queries

ORDER = {"train": 0, "dev": 1, "test": 2}
STEMS = ["garden", "gardens", "chair", "chairs", "wooden", "cheap", "cheaper", "blue", "with", "of", "a", "umbrella"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Query = tuple[str, str, str]  # id, split, text


def found(folder: Path, queries: Sequence[Query]) -> dict[str, str]:
    with closing(Engine(folder, "500MB", 1)) as engine:
        engine.run("CREATE TABLE grams (query_id VARCHAR, split VARCHAR, own VARCHAR[])")
        ids, splits, texts = zip(*queries, strict=True)
        engine.insert("grams", pa.table([ids, splits, [sorted(trigrams(text)) for text in texts]], names=list("abc")))
        engine.run(near_queries("grams"))
        return dict(engine.run("SELECT query_id, other FROM near"))


def compared(queries: Sequence[Query]) -> dict[str, str]:
    """Each pair in Python."""
    sets = {query_id: trigrams(text) for query_id, _, text in queries}
    near = dict[str, str]()
    for (own_id, own_split, _), (other_id, other_split, _) in product(queries, queries):
        own, other = sets[own_id], sets[other_id]
        if ORDER[own_split] < ORDER[other_split] and own and len(own & other) >= RESEMBLANCE * len(own | other):
            near[own_id] = min(other_id, near.get(own_id, other_id))
    return near


def test_every_query_that_nearly_is_a_held_out_one_is_found_and_no_other(tmp_path: Path) -> None:
    draw = random.Random(3)
    queries = [(f"q{number}", draw.choice(list(ORDER)), " ".join(draw.choices(STEMS, k=draw.randint(0, 6))))
               for number in range(300)]  # fmt: skip
    expected = compared(queries)
    assert 30 < len(expected) < 200
    assert found(tmp_path, queries) == expected


def test_queries_around_the_longest_that_three_trigrams_find_are_found_by_three_or_by_one(tmp_path: Path) -> None:
    """Each is a text without some of its words; pairs are found that resemble each other as little as any may."""
    draw = random.Random(5)
    queries = list[Query]()
    for text in range(40):
        words = ["".join(draw.choices(LETTERS, k=5)) for _ in range(draw.randint(16, 30))]
        for number in range(6):
            left = draw.sample(words, len(words) - draw.randint(0, len(words) // 5))
            queries.append((f"q{text}-{number}", draw.choice(list(ORDER)), " ".join(left)))
    expected, sizes = compared(queries), {query_id: len(trigrams(text)) for query_id, _, text in queries}
    pairs = [sorted((sizes[own], sizes[other])) for own, other in expected.items()]
    for kind in (
        [larger <= LONG for _, larger in pairs],
        [smaller <= LONG < larger for smaller, larger in pairs],
        [smaller > LONG for smaller, _ in pairs],
        [smaller < 0.84 * larger for smaller, larger in pairs],
    ):
        assert sum(kind) >= 5
    assert found(tmp_path, queries) == expected


def test_a_text_that_was_pasted_into_a_search_box_fits_into_memory(tmp_path: Path) -> None:
    draw = random.Random(7)
    words = [*dict.fromkeys("".join(draw.choices(LETTERS, k=9)) for _ in range(1000))]
    pasted = " ".join(words)
    assert len(pasted) >= 9_990 and len(trigrams(pasted)) > 5_000
    queries = [("pasted", "train", pasted), ("again", "test", " ".join(words[50:])), ("else", "test", words[0])]
    assert found(tmp_path, queries) == {"pasted": "again"}
