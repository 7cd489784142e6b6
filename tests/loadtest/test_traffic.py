"""Queries, numbers of documents and times of arrival."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest

from client import Document, InvalidRequestError
from loadtest._schedule import arrivals
from loadtest._traffic import Counts, Request, read_groups, traffic
from tests.support.checkpoints import write_groups


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("100", {100: 1.0}),
        ("10:0.7,100:0.25,1000:0.05", {10: 0.7, 100: 0.25, 1000: 0.05}),
        ("10:14,100:5,1000:1", {10: 0.7, 100: 0.25, 1000: 0.05}),  # weights need not sum to one
        ("uniform:5-8", dict.fromkeys((5, 6, 7, 8), 0.25)),
    ],
)
def test_numbers_of_documents_are_drawn_by_weight(text: str, shares: dict[int, float]) -> None:
    randomness, counts = random.Random(0), Counts.parse(text)
    drawn = Counter(counts.draw(randomness) for _ in range(4000))
    assert {number: count / 4000 for number, count in drawn.items()} == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize(
    "text",
    ["", "many", "-3", "10:0.5,20", "10:0", "10:-1,20:1", "10:nan", "10:inf,5:1", "0:1,10:1", "uniform:9-3",
     "uniform:0-3", "uniform:3", "uniform:1-20000000", "2000000", "10:0.5;20:0.5"],
)  # fmt: skip
def test_other_texts_are_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"uniform|documents|weight|none of"):
        Counts.parse(text)


def groups() -> list[Request]:
    def documents(name: str, count: int) -> tuple[Document, ...]:
        return tuple(Document(doc_id=f"{name}{number}", title="title", summary="a summary") for number in range(count))

    return [Request("first", documents("a", 3)), Request("second", documents("b", 4))]


def test_a_query_comes_with_its_own_documents_and_is_filled_up_with_others() -> None:
    for request in itertools.islice(traffic(groups(), Counts.parse("6"), seed=0), 50):
        name, own = ("a", 3) if request.query == "first" else ("b", 4)
        assert [document.doc_id for document in request.documents[:own]] == [f"{name}{n}" for n in range(own)]
        assert len(request.documents) == 6


@pytest.mark.parametrize(("text", "sizes"), [("2", (2, 2)), ("50", (50, 50)), ("0", (3, 4))])
def test_fewer_than_a_query_has_more_than_there_are_and_its_own_only(text: str, sizes: tuple[int, int]) -> None:
    requests = itertools.islice(traffic(groups(), Counts.parse(text), seed=1), 50)
    assert {(one.query, len(one.documents)) for one in requests} == {*zip(("first", "second"), sizes, strict=True)}


def test_a_seed_decides_the_requests() -> None:
    def sent(seed: int) -> list[Request]:
        return list(itertools.islice(traffic(groups(), Counts.parse("uniform:1-9"), seed), 30))

    assert sent(3) == sent(3) != sent(4)


def test_sizes_are_those_of_the_tensors() -> None:
    request = Request("bär", (Document(doc_id="not sent", title="ab"), Document(summary="xyz")))
    assert request.request_bytes == 5 * 4 + len("bär".encode()) + 2 + 3  # five strings, each with its length
    assert request.response_bytes == 2 * (4 + 1)


def test_groups_are_read_as_the_trainer_writes_them(tmp_path: Path) -> None:
    """Faults are in tests/client/test_inputs.py, which the trainer and the client refuse alike."""
    path = write_groups(tmp_path / "queries.jsonl", queries=5, documents=7)
    assert [len(group.documents) for group in read_groups(path)] == [7] * 5
    path.write_text("\n")
    with pytest.raises(InvalidRequestError, match=f"^{path}: no queries in this file"):
        read_groups(path)


def test_constant_arrivals_do_not_drift() -> None:
    times = list(arrivals("constant", 3, 1000, seed=0))
    assert len(times) == 3000
    assert times[0] == 0
    assert times[2999] == pytest.approx(2999 / 3, abs=1e-9)


def test_poisson_arrivals_are_independent() -> None:
    times = list(arrivals("poisson", 50, 200, seed=1))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == pytest.approx(10_000, abs=4 * 100)  # the deviation of the number is its root
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)  # exponential: as large as the mean
    assert 0 < times[0] < times[-1] < 200
    assert times == list(arrivals("poisson", 50, 200, seed=1)) != list(arrivals("poisson", 50, 200, seed=2))


def test_a_schedule_may_have_no_end_and_some_cannot_be() -> None:
    assert len(list(itertools.islice(arrivals("poisson", 1, math.inf, seed=0), 1000))) == 1000
    for kind, rate in (("bursts", 1.0), ("poisson", 0.0), ("constant", -1.0)):
        with pytest.raises(ValueError, match="arrivals at"):
            arrivals(kind, rate, 1, seed=0)
