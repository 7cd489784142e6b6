"""``trainer.prepare``: raw logs in any layout, the files that come out, and what is said of what does not."""

from __future__ import annotations

import json
import random
import re
import tempfile
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.logs import (
    CLICKED,
    DOCUMENTS,
    HALVES,
    QUERIES,
    Row,
    counts,
    files,
    groups,
    impressions,
    prepared,
    raw,
    write,
    write_text,
)
from trainer.preparation.queries import folded


def test_clicks_pool_and_splits_of_a_log(tmp_path: Path) -> None:
    found = prepared(raw(tmp_path / "raw"), tmp_path / "out", *HALVES)
    assert {*found} == {*CLICKED, "pool"}
    assert {*groups(found, *CLICKED)} == {*QUERIES}
    for query, group in groups(found, *CLICKED).items():
        (document,) = group.documents
        assert (document.title, document.clicks) == (f"About {query} {QUERIES.index(query) * 3}", len(_asked(query)))
    assert {*groups(found, "pool")} == {*groups(found, "log")}
    assert {len(group.documents) for group in found["pool"]} == {4}


def _asked(query: str) -> list[int]:
    return [session for session in range(60) if session % len(QUERIES) == QUERIES.index(query)]


@pytest.mark.parametrize("dwell", [0, 30])
def test_clicks_count_by_the_time_that_they_lasted_and_the_place_that_they_were_at(dwell: int, tmp_path: Path) -> None:
    write_text(tmp_path / "bias.tsv", "1 1\n2 0.5\n3 0.05\n")
    found = prepared(raw(tmp_path / "raw"), tmp_path / "out", "--min_dwell_s", dwell, "--position_bias",
                     tmp_path / "bias.tsv", "--max_click_weight", 8)  # fmt: skip
    log = groups(found, *CLICKED)
    for query in QUERIES:
        # The third of a page's places turns with the session; a click dwells 20 s in each second one.
        places = [(1, 4, 3)[session % 3] for session in _asked(query) if 20 + session % 2 * 20 >= dwell]
        weight = sum({1: 1.0, 2: 2.0, 3: 8.0, 4: 8.0}[place] for place in places)
        assert (log[query].documents[0].clicks if query in log else 0) == weight
    (note,) = counts(tmp_path / "out")["notes"]
    assert (note["rule"], note["example"]) == ("positions without a propensity, which have that of one above", "4")
    clipped = counts(tmp_path / "out")["correction"]
    assert clipped["clipped"] > 0 and 0 < clipped["lost"] < 1


def test_what_no_person_does_is_dropped_by_the_rule_that_is_against_it(tmp_path: Path) -> None:
    rows = impressions()
    row = rows[0]
    crawl = [
        {**row, "session": "robot", "query": query, "time": row["time"] + n} for n, query in enumerate(QUERIES * 2)
    ]
    eager = [{**row, "session": "eager", "click": 1, "time": row["time"] + n} for n in range(9)]
    odd = [
        {**row, "session": "odd", "click": 7},
        *({**row, "session": "long", "time": row["time"] + hours * 3600} for hours in (0, 30)),
        {**row, "session": "lost", "doc_id": "d999"},
    ]
    raw(tmp_path / "raw", [*rows, *crawl, *eager, *odd, rows[3]])
    prepared(tmp_path / "raw", tmp_path / "out", "--max_session_queries", 10, "--max_session_clicks", 8)
    found = counts(tmp_path / "out")
    assert {each["rule"]: (each["count"], each["example"]) for each in found["dropped"]} == {
        "rows that came before": (1, f"{tmp_path}/raw/impressions.jsonl:{len(rows) + 46}"),
        "robots: more than 10 queries": (32, "robot"),
        "robots: more than 8 clicks": (9, "eager"),
        "sessions with more clicks than impressions": (1, "odd"),
        "sessions of more than 24 hours": (2, "long"),
        "documents without a text": (1, "d999"),
    }
    assert found["impressions"] == len(rows)


def test_a_document_is_there_once_under_its_first_id(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(60))
    texts = [*DOCUMENTS, {"doc_id": "a0", **_texts(DOCUMENTS[0])}, {"doc_id": "x1", "title": "Long", "summary": long},
             {"doc_id": "x2", "title": "Long", "summary": f"{long} more"},
             {"doc_id": "x3", "title": "Long", "summary": f"{long[:200]} and other words"}]  # fmt: skip
    rows = [*impressions(), *({**impressions()[0], "session": "n", "doc_id": f"x{n}", "click": 1} for n in (1, 2, 3))]
    write(tmp_path / "raw/documents.jsonl", texts)
    write(tmp_path / "raw/impressions.jsonl", rows)
    found = prepared(tmp_path / "raw", tmp_path / "out", "--test_share", 0, "--dev_share", 0)
    clicks = {document.doc_id: document.clicks for document in groups(found, "log")["cheap bike"].documents}
    assert clicks == {"a0": 4, "x1": 2, "x3": 1}
    notes = {each["rule"]: each["example"] for each in counts(tmp_path / "out")["notes"]}
    assert notes["documents with the text of another"] == "d0 = a0"
    assert notes["documents with nearly the text of another"] == "x2 ~ x1"


def _texts(document: Row) -> Row:
    return {"title": document["title"], "summary": document["summary"]}


def test_queries_that_differ_in_form_only_are_one(tmp_path: Path) -> None:
    forms = ["Cheap  bike", "\uff23heap bike", "cheap bike ", "CHEAP BIKE", "Cheap bike"]
    rows = [{**impressions()[0], "session": f"f{n}", "query": form} for n, form in enumerate(forms)]
    for fold, expected in (("true", {"Cheap bike"}), ("false", {"Cheap bike", "cheap bike", "CHEAP BIKE"})):
        raw(tmp_path / fold, rows)
        found = prepared(tmp_path / fold, tmp_path / f"{fold}-out", "--fold_case", fold)
        assert {*groups(found, *CLICKED)} == expected


def test_splits_by_time(tmp_path: Path) -> None:
    """A query belongs to the time at which it was first asked, and its later impressions are dropped."""
    raw(tmp_path / "raw")
    start = impressions()[0]["time"]
    dates = ["--dev_from", f"{_date(start + 60 * 8)}", "--test_from", f"{_date(start + 60 * 12)}"]
    found = prepared(tmp_path / "raw", tmp_path / "out", "--split", "time", *dates)
    assert {*groups(found, "log")} == {*QUERIES[:8]}
    assert {*groups(found, "log-dev")} == {*QUERIES[8:12]}
    assert {*groups(found, "log-test")} == {*QUERIES[12:]}
    assert all(group.documents[0].clicks == 1 for group in found["log"] + found["log-dev"])
    assert all(group.documents[0].clicks > 1 for group in found["log-test"])
    (rule,) = counts(tmp_path / "out")["dropped"][:1]
    assert rule["rule"] == "of a query after the time of its split"


def test_a_split_by_time_drops_what_has_no_time(tmp_path: Path) -> None:
    mapping = """
        [log]
        files = ["impressions.jsonl"]
        columns = { time = "time?", query = "query", document = "doc_id", position = "position", click = "click" }
        [documents]
        files = ["documents.jsonl"]
        columns = { document = "doc_id", title = "title", summary = "summary" }
    """
    rows = impressions()
    start, untimed = rows[0]["time"], {QUERIES[0], QUERIES[15]}
    raw(tmp_path, [{**row, "time": None} if row["query"] in untimed else row for row in rows])
    dates = ["--dev_from", _date(start + 60 * 8), "--test_from", _date(start + 60 * 12)]
    found = prepared(tmp_path, tmp_path / "out", "--split", "time", *dates,
                     mapping=write_text(tmp_path / "own.toml", mapping))  # fmt: skip
    assert not {*groups(found)} & untimed
    dropped = {each["rule"]: each["count"] for each in counts(tmp_path / "out")["dropped"]}
    assert dropped["without a time"] == sum(row["query"] in untimed for row in rows)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def test_the_report_is_a_page_of_its_own(bert: Path, tmp_path: Path) -> None:
    raw(tmp_path / "raw")
    write_text(tmp_path / "raw/more-impressions.jsonl", "no JSON\n")
    prepared(tmp_path / "raw", tmp_path / "out", "--position_bias", "estimated", "--max_failed", 1,
             "--model", bert)  # fmt: skip
    page = (tmp_path / "out/prepare.html").read_text()
    assert page.count("<svg") == 5 and not re.search(r"""(src|href)=["'](?!#)""", page)
    for words in ("240 impressions kept", "no JSON", "propensity", "log.jsonl", f"tokens of {bert}"):
        assert words in page
    (failed,) = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert failed == {"file": f"{tmp_path}/raw/more-impressions.jsonl", "row": 1, "reason": "no JSON", "record": None}


def test_the_report_counts_every_failure_by_its_kind(tmp_path: Path) -> None:
    rows = [{"query": "q", "doc_ids": ["d0"], "clicks": [0] * number} for number in range(2, 30)]
    write(tmp_path / "raw/pages.jsonl", [*rows, {"query": "cheap bike", "doc_ids": ["d0"], "clicks": [1]}])
    write(tmp_path / "raw/documents.jsonl", DOCUMENTS)
    prepared(tmp_path / "raw", tmp_path / "out", "--max_failed", 28, mapping="pages")
    found = counts(tmp_path / "out")
    assert [(each["rule"], each["count"]) for each in found["failed"]] == [("click has … values for … documents", 28)]
    assert found["failures"] == 28
    assert "28 rows and files failed" in (tmp_path / "out/prepare.html").read_text()


# A log of a few queries, some of which nearly are others, with rows that no log should have.
TYPED = st.sampled_from(
    ["cheap bike", "Cheap Bike", "cheap bikes", "garden chair", "garden chairs", "a", "b c", "\u3000"]
)
ROW = st.fixed_dictionaries({
    "session": st.sampled_from(["s1", "s2", "s3"]),
    "time": st.integers(0, 40).map(lambda hours: 1_700_000_000 + 3600 * hours),
    "query": TYPED,
    "doc_id": st.sampled_from(["d0", "d1", "d2", "d5", "unknown"]),
    "position": st.sampled_from([1, 2, 3, 0, None, "x"]),
    "click": st.sampled_from([0, 1, 5, -1]),
})  # fmt: skip


@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])  # a run takes a second
@given(rows=st.lists(ROW, min_size=1, max_size=40), order=st.randoms(use_true_random=False))
def test_counts_add_up_and_the_order_of_rows_and_files_changes_nothing(rows: list[Row], order: random.Random) -> None:
    rows = [*rows, *impressions(4)]
    shuffled = rows.copy()
    order.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        raw(root / "one", rows)
        for number in range(3):
            write(root / f"many/impressions/{9 - number}.jsonl", shuffled[number::3])
        write(root / "many/documents.jsonl", DOCUMENTS[::-1])
        flags = [*HALVES, "--max_failed", len(rows), "--shares", 1, 0, 1, 1, "--candidates", 9]
        found = prepared(root / "one", root / "a", *flags)
        prepared(root / "many", root / "b", *flags, "--threads", 2)
        first, second = (
            {name: text for name, text in files(root / side).items() if name != "failed.jsonl"} for side in "ab"
        )
        assert first == second
        count = counts(root / "a")
        failed = (root / "a/failed.jsonl").read_text().splitlines()
        dropped = sum(each["count"] for each in count["dropped"])
        assert count["rows"]["log"] == len(rows) == count["impressions"] + dropped + len(failed)
        assert len(failed) == count["failures"] == sum(each["count"] for each in count["failed"])
    by_split = [{*map(folded, groups(found, *names))} for names in (("log", "pool"), ("log-dev",), ("log-test",))]
    assert not any(one & other for one, other in combinations(by_split, 2))


def test_what_is_added_later_changes_no_split(tmp_path: Path) -> None:
    rows = impressions()
    splits: list[dict[str, str]] = []
    for name, part in (("early", rows[:120]), ("late", [*rows, {**rows[0], "session": "new", "query": "cheap bikes"}])):
        found = prepared(raw(tmp_path / name, part), tmp_path / f"{name}-out", *HALVES)
        splits.append({query: split for split in CLICKED for query in groups(found, split)})
    early, late = splits
    assert {query: late.get(query) for query in early} == early
