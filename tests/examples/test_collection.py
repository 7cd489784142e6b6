"""The collection is what its users count on: readable by the trainer, new combinations, hard for words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from examples import collection
from model_repository.tokenizer.pair_encoding import IntArray
from tests.support.stages import fails, run
from trainer import prepare
from trainer.data.records import JudgedDocument, QueryGroup, Scores, read_groups
from trainer.measures.baselines import Bm25, random_scores
from trainer.measures.metrics import judgments, per_query

Splits = dict[str, list[QueryGroup]]
NAMES: dict[str, list[list[str]]] = json.loads(collection.CONCEPTS.read_text(encoding="utf-8"))
SIZES = {"train": 200, "log": 1500, "dev": 50, "test": 200}
SLOTS = ("object", "intent", "attribute")
NUMBERS = {slot: {name: number for number, names in enumerate(NAMES[slot]) for name in names} for slot in SLOTS}
PATTERNS = {
    slot: re.compile(rf"\b({'|'.join(sorted(map(re.escape, NUMBERS[slot]), key=len, reverse=True))})\b")
    for slot in SLOTS
}


def written(folder: Path, seed: int, size: float = 1.0, *, names: Iterable[str] = SIZES) -> Splits:
    assert collection.main(["--output_dir", str(folder), "--seed", str(seed), "--size", str(size)]) == 0
    return {name: read_groups(folder / f"{name}.jsonl") for name in names}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return written(tmp_path_factory.mktemp("collection"), seed=0)


def named(slot: str, text: str) -> set[int]:
    """The concepts of ``slot`` that ``text`` names: what a reader who knows every synonym sees."""
    return {NUMBERS[slot][name] for name in PATTERNS[slot].findall(text.lower())}


def topic(text: str) -> tuple[int, ...]:
    """The one concept of each slot; fails where a text is ambiguous."""
    return tuple(number for slot in SLOTS for (number,) in [named(slot, text)])


def grade(query: Sequence[int], document: Sequence[int]) -> int:
    return sum(q == d for q, d in zip(query, document, strict=True)) if query[0] == document[0] else 0


def ndcg(groups: Sequence[QueryGroup], scores: Scores) -> float:
    return float(np.mean(list(per_query(judgments(groups), scores, "nDCG@10").values())))


def documents(splits: Splits) -> list[JudgedDocument]:
    return [document for groups in splits.values() for group in groups for document in group.documents]


@pytest.fixture(scope="module")
def log(splits: Splits) -> tuple[IntArray, IntArray]:
    """Grades [B, D], which the log keeps to itself, and clicks [B, D] of the logged queries' documents."""
    grades = [[grade(topic(group.query), topic(each.title)) for each in group.documents] for group in splits["log"]]
    return np.array(grades), np.array([[each.clicks for each in group.documents] for group in splits["log"]])


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    files = {}
    for folder, seed in (("first", 3), ("again", 3), ("other", 4)):
        splits = written(tmp_path / folder, seed, size=0.1)
        assert {name: 10 * len(groups) for name, groups in splits.items()} == SIZES
        files[folder] = {path.name: path.read_bytes() for path in (tmp_path / folder).rglob("*.jsonl")}
    assert files["first"] == files["again"]
    assert all(files["first"][name] != files["other"][name] for name in files["first"])


def test_the_raw_log_has_the_same_queries_clicks_and_labels(tmp_path: Path) -> None:
    expected = written(tmp_path / "collection", 3, size=0.1)
    flags = ["--mapping", "pages", "--input", tmp_path / "collection/raw", "--dev_share", 0, "--test_share", 0]
    run(prepare, *flags, "--output_dir", tmp_path / "data")
    for name, made in (("log", "log"), ("train", "judged"), ("dev", "dev"), ("test", "test")):
        found = {group.query_id: group for group in read_groups(tmp_path / f"data/{made}.jsonl")}
        assert {group.query_id: group.query for group in expected[name]} == {
            query_id: group.query for query_id, group in found.items()
        }
        for group in expected[name]:
            kept = [each for each in group.documents if each.clicks or each.label is not None]
            assert sorted(kept, key=lambda each: each.doc_id) == [*found[group.query_id].documents]
    pool = {group.query_id: len(group.documents) for group in read_groups(tmp_path / "data/pool.jsonl")}
    assert pool == {group.query_id: 20 for name in ("train", "log") for group in expected[name]}


def test_sizes(splits: Splits) -> None:
    assert {name: len(groups) for name, groups in splits.items()} == SIZES
    assert {len(group.documents) for groups in splits.values() for group in groups} == {20}
    ids = [document.doc_id for document in documents(splits)]
    assert len(set(ids)) == len(ids)


def test_about_seventy_concepts_of_four_names_that_share_no_word() -> None:
    concepts = list(chain.from_iterable(NAMES[slot] for slot in SLOTS))
    assert len(concepts) == 70
    assert {len(set(names)) for names in concepts} == {4}
    words = [{word for name in names for word in name.split()} for names in concepts]
    assert len(set().union(*words)) == sum(map(len, words))


def test_queries_and_documents_favour_other_names(splits: Splits) -> None:
    groups = list(chain.from_iterable(splits.values()))
    for texts, favoured in (([g.query for g in groups], slice(2)), ([d.title for d in documents(splits)], slice(2, 4))):
        found = [
            name in NAMES[slot][NUMBERS[slot][name]][favoured]
            for text in texts[:2000]
            for slot in SLOTS
            for name in PATTERNS[slot].findall(text.lower())
        ]
        assert 0.6 < np.mean(found) < 0.75


def test_the_log_knows_each_concept_of_the_test_but_no_combination(splits: Splits) -> None:
    asked = {name: [topic(group.query) for group in groups] for name, groups in splits.items()}
    assert not set(asked["test"]) & set(chain(asked["train"], asked["log"], asked["dev"]))
    for slot, names in enumerate(SLOTS):
        counts = np.bincount([query[slot] for query in asked["log"]], minlength=len(NAMES[names]))
        assert counts.min() >= 15


def test_a_label_is_the_number_of_slots_that_match(splits: Splits) -> None:
    groups = [*splits["train"], *splits["dev"], *splits["test"]]
    labels = [document.label for group in groups for document in group.documents]
    assert labels == [grade(topic(g.query), topic(document.title)) for g in groups for document in g.documents]
    assert 0.65 < np.mean([label == 0 for label in labels]) < 0.75
    assert all(any(document.label == 3 for document in group.documents) for group in groups)


def test_only_the_log_has_clicks_and_it_has_no_labels(splits: Splits) -> None:
    for name, groups in splits.items():
        for group in groups:
            assert any(document.clicks for document in group.documents) == (name == "log")
            assert {document.label is None for document in group.documents} == {name == "log"}


def test_clicks_follow_place_at_equal_relevance(log: tuple[IntArray, IntArray]) -> None:
    grades, clicks = log
    for relevance in (1, 2, 3):
        high, low = (clicks[:, part][grades[:, part] == relevance].mean() for part in (slice(5), slice(15, None)))
        assert high > 1.5 * low


def test_clicks_follow_relevance_and_err(log: tuple[IntArray, IntArray]) -> None:
    grades, clicks = log
    rates = [clicks[grades == relevance].mean() for relevance in range(4)]
    assert rates == sorted(rates)
    assert rates[2] > 3 * rates[0]
    assert 0.05 < clicks[grades == 0].sum() / clicks.sum() < 0.3


def test_pages_in_bm25s_order_are_clicked_at_the_top_and_the_log_sums_their_clicks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output_dir", tmp_path, "--size", 0.1, "--bm25_sessions"]
    run(collection, *flags, 20)
    pages = [json.loads(line) for line in (tmp_path / "raw/pages.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = read_groups(tmp_path / "log.jsonl")
    assert len(pages) == 20 * len(groups)
    by_place = np.array([page["clicks"] for page in pages]).reshape(len(pages), 4, -1).sum(axis=(0, 2))
    assert all(high > 1.5 * low for high, low in pairwise(by_place.tolist()))
    clicks = Counter[tuple[str, str]]()
    for page in pages:
        for doc_id, click in zip(page["doc_ids"], page["clicks"], strict=True):
            clicks[page["query"], doc_id] += click
    assert clicks == Counter(
        {(group.query, document.doc_id): document.clicks for group in groups for document in group.documents}
    )
    assert fails(collection, capsys, *flags, -1) == "error: --bm25_sessions must be at least 0, not -1"


def test_words_alone_do_not_rank(splits: Splits, tmp_path: Path) -> None:
    for seed, test in enumerate((splits["test"], written(tmp_path, 1, names=["test"])["test"])):
        assert ndcg(test, random_scores(test, seed)) <= 0.40
        assert 0.45 <= ndcg(test, Bm25(test).scores(test)) <= 0.65


def test_no_template_betrays_a_grade(splits: Splits) -> None:
    """Neither length nor a mention in passing ranks better than chance does."""
    test = splits["test"]
    texts = {document.doc_id: f"{document.title}. {document.summary}" for group in test for document in group.documents}
    words = {doc_id: -float(len(text.split())) for doc_id, text in texts.items()}
    mentions = {doc_id: -float(len(named("object", text))) for doc_id, text in texts.items()}
    for shortcut in (words, mentions):
        scores = {group.query_id: {each.doc_id: shortcut[each.doc_id] for each in group.documents} for group in test}
        assert ndcg(test, scores) <= 0.40
