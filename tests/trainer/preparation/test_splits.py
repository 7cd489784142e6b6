"""Which queries nearly are held-out ones: the answer of the database against every pair compared in Python."""

from __future__ import annotations

import random
from contextlib import closing
from itertools import product
from pathlib import Path

import pyarrow as pa

from trainer.data.resemblance import RESEMBLANCE, trigrams
from trainer.preparation.engine import Engine
from trainer.preparation.splits import near_queries

ORDER = {"train": 0, "dev": 1, "test": 2}
STEMS = ["garden", "gardens", "chair", "chairs", "wooden", "cheap", "cheaper", "blue", "with", "of", "a", "umbrella"]


def resembles(one: str, other: str) -> bool:
    own, others = trigrams(one), trigrams(other)
    return bool(own) and len(own & others) >= RESEMBLANCE * len(own | others)


def test_every_query_that_nearly_is_a_held_out_one_is_found_and_no_other(tmp_path: Path) -> None:
    draw = random.Random(3)
    queries = [(f"q{number}", draw.choice(list(ORDER)), " ".join(draw.choices(STEMS, k=draw.randint(0, 6))))
               for number in range(300)]  # fmt: skip
    expected = dict[str, str]()
    for (own_id, own_split, own), (other_id, other_split, other) in product(queries, queries):
        if ORDER[own_split] < ORDER[other_split] and resembles(own, other):
            expected[own_id] = min(other_id, expected.get(own_id, other_id))
    assert 30 < len(expected) < 200
    with closing(Engine(tmp_path, "500MB", 1)) as engine:
        engine.run("CREATE TABLE grams (query_id VARCHAR, split VARCHAR, own VARCHAR[])")
        ids, splits, texts = zip(*queries, strict=True)
        engine.insert("grams", pa.table([ids, splits, [sorted(trigrams(text)) for text in texts]], names=list("abc")))
        engine.run(near_queries("grams"))
        assert dict(engine.run("SELECT query_id, other FROM near")) == expected
