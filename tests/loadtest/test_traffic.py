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
from loadtest._traffic import Counts, Request, Traffic, read_groups
from tests.support.checkpoints import write_groups


def drawn(text: str, times: int = 4000) -> Counter[int]:
    randomness, counts = random.Random(0), Counts.parse(text)
    return Counter(counts.draw(randomness) for _ in range(times))


def test_a_fixed_number() -> None:
    assert drawn("100") == {100: 4000}


def test_weights_need_not_sum_to_one() -> None:
    for text in ("10:0.7,100:0.25,1000:0.05", "10:14,100:5,1000:1"):
        shares = {number: count / 4000 for number, count in drawn(text).items()}
        assert shares == pytest.approx({10: 0.7, 100: 0.25, 1000: 0.05}, abs=0.03)


def test_uniform_reaches_both_ends() -> None:
    found = drawn("uniform:5-8")
    assert set(found) == {5, 6, 7, 8}
    assert min(found.values()) > 800


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
    for request in itertools.islice(Traffic(groups(), Counts.parse("6"), seed=0), 50):
        name, own = ("a", 3) if request.query == "first" else ("b", 4)
        assert [document.doc_id for document in request.documents[:own]] == [f"{name}{n}" for n in range(own)]
        assert len(request.documents) == 6


def test_fewer_than_the_query_has_and_more_than_there_are() -> None:
    assert {len(next(Traffic(groups(), Counts.parse("2"), seed)).documents) for seed in range(9)} == {2}
    assert {len(next(Traffic(groups(), Counts.parse("50"), seed)).documents) for seed in range(9)} == {50}


def test_without_a_number_each_query_has_its_own_documents() -> None:
    requests = list(itertools.islice(Traffic(groups(), Counts.parse("0"), seed=1), 50))
    assert {(request.query, len(request.documents)) for request in requests} == {("first", 3), ("second", 4)}


def test_a_seed_decides_the_requests() -> None:
    def sent(seed: int) -> list[Request]:
        return list(itertools.islice(Traffic(groups(), Counts.parse("uniform:1-9"), seed), 30))

    assert sent(3) == sent(3) != sent(4)


def test_sizes_are_those_of_the_tensors() -> None:
    request = Request("bär", (Document(doc_id="not sent", title="ab"), Document(summary="xyz")))
    assert request.request_bytes == 5 * 4 + len("bär".encode()) + 2 + 3  # five strings, each with its length
    assert request.response_bytes == 2 * (4 + 1)


def test_groups_are_read_as_the_trainer_writes_them(tmp_path: Path) -> None:
    read = read_groups(write_groups(tmp_path / "queries.jsonl", queries=5, documents=7))
    assert [len(group.documents) for group in read] == [7] * 5


def test_a_file_without_queries_and_a_line_at_fault_are_named(tmp_path: Path) -> None:
    """Other faults are in tests/client/test_inputs.py, which the trainer and the client refuse alike."""
    path = tmp_path / "queries.jsonl"
    for content, message in (("\n", "no queries in this file"), ('{"query": "q", "documents": []}', "at least one")):
        path.write_text(content)
        with pytest.raises(InvalidRequestError, match=f"^{path}.*{message}"):
            read_groups(path)
    with pytest.raises(InvalidRequestError, match=r"none\.jsonl: cannot be read: No such file"):
        read_groups(tmp_path / "none.jsonl")


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


def test_a_schedule_may_have_no_end() -> None:
    assert len(list(itertools.islice(arrivals("poisson", 1, math.inf, seed=0), 1000))) == 1000


@pytest.mark.parametrize(("kind", "rate"), [("bursts", 1.0), ("poisson", 0.0), ("constant", -1.0)])
def test_schedules_that_cannot_be_are_refused(kind: str, rate: float) -> None:
    with pytest.raises(ValueError, match="arrivals at"):
        next(arrivals(kind, rate, 1, seed=0))
