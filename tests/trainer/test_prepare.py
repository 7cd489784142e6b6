"""``trainer.prepare``: raw logs in any layout, the files that come out, and what is said of what does not."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.logs import DOCUMENTS, QUERIES, Row, counts, impressions, pages, prepared, write, write_text
from tests.support.stages import fails
from trainer import prepare
from trainer.data.records import QueryGroup
from trainer.preparation.queries import folded

CLICKED = ("log", "log-dev", "log-test")
HALVES = ["--dev_share", 0.25, "--test_share", 0.25]


def raw(folder: Path, rows: list[Row] | None = None) -> Path:
    """One row an impression, with the documents' texts in a file of their own."""
    write(folder / "impressions.jsonl", impressions() if rows is None else rows)
    write(folder / "documents.jsonl", DOCUMENTS)
    return folder


def files(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.jsonl")}


def groups(found: dict[str, list[QueryGroup]], *names: str) -> dict[str, QueryGroup]:
    return {group.query: group for name in names or found for group in found.get(name, [])}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    prepared(raw(folder / "raw"), folder / "out", *HALVES)
    return files(folder / "out")


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


def _as(name: str) -> Callable[[Path], str]:
    def layout(folder: Path) -> str:
        rows = impressions()
        for part, chosen in (("a", rows[:100]), ("b", rows[100:])):
            write(folder / f"impressions/{part}{name}", chosen)
        write(folder / f"documents/all{name}", DOCUMENTS)
        return "impressions"

    return layout


def _with_texts(folder: Path) -> str:
    texts = {document["doc_id"]: document for document in DOCUMENTS}
    write(folder / "impressions.jsonl", [{**row, **texts[row["doc_id"]]} for row in impressions()])
    return "impressions"


def _pages(name: str) -> Callable[[Path], str]:
    def layout(folder: Path) -> str:
        write(folder / f"pages{name}", pages(impressions()))
        write(folder / "documents.jsonl", DOCUMENTS)
        return "pages"

    return layout


def _own_mapping(folder: Path) -> str:
    """A page's documents are objects, its clicks a list of ids; other names, expressions, dates instead of seconds."""
    rows = [
        {"who": page["session"], "when": {"unix": page["time"] * 1000}, "request": {"text": page["query"]},
         "shown": [{"id": document} for document in page["doc_ids"]],
         "clicked": [document for document, click in zip(page["doc_ids"], page["clicks"], strict=True) if click]}
        for page in pages(impressions())
    ]  # fmt: skip
    write(folder / "log-2024.ndjson.jsonl", rows)
    write(
        folder / "texts.csv", [{"key": each["doc_id"], "t": each["title"], "s": each["summary"]} for each in DOCUMENTS]
    )
    mapping = """
        [log]
        files = ["log-*.jsonl"]
        pages = true
        [log.columns]
        session = "who"
        time = "when.unix"
        query = "request.text"
        document = "list_transform(json -> '$.shown', lambda each: each ->> '$.id')"
        clicked = "clicked"
        [documents]
        files = ["texts.csv"]
        columns = { document = "key", title = "t", summary = "s" }
    """.replace("json -> '$.shown'", "(json -> '$.shown')::JSON[]")
    return str(write_text(folder / "own.toml", mapping))


@pytest.mark.parametrize(
    "layout",
    [_as(".parquet"), _as(".csv"), _as(".tsv.gz"), _as(".jsonl.zst"), _with_texts, _pages(".jsonl"),
     _pages(".parquet"), _own_mapping],
    ids=["parquet", "csv", "tsv-gz", "jsonl-zst", "texts", "pages-jsonl", "pages-parquet", "own"],
)  # fmt: skip
def test_every_layout_gives_the_same_files(
    layout: Callable[[Path], str], plain: dict[str, bytes], tmp_path: Path
) -> None:
    prepared(tmp_path / "raw", tmp_path / "out", *HALVES, mapping=layout(tmp_path / "raw"))
    assert files(tmp_path / "out") == plain


def _judged(folder: Path, layout: str) -> None:
    """Two judged queries of training, one of test, and what a first stage found for all."""
    ids = {query: f"q{number}" for number, query in enumerate(QUERIES)}
    grades = {("cheap bike", "d0"): 2, ("cheap bike", "d5"): 0, ("blue lamp", "d6"): 1, ("oak table", "d12"): 3}
    lines = {split: [f"{ids[query]} 0 {document} {label}" for (query, document), label in grades.items()
                     if (query == "oak table") == (split == "test")] for split in ("train", "test")}  # fmt: skip
    ranked = [f"{ids[query]} Q0 d{rank} {rank + 1} {-rank} bm25" for query in QUERIES[:5] for rank in range(30)]
    write_text(folder / "first.run", "\n".join(ranked) + "\n")
    if layout == "beir":
        write(
            folder / "corpus.jsonl",
            [{"_id": d["doc_id"], "title": d["title"], "text": d["summary"]} for d in DOCUMENTS],
        )
        write(folder / "queries.jsonl", [{"_id": query_id, "text": query} for query, query_id in ids.items()])
        for split, judgments in lines.items():
            rows = [line.split() for line in judgments]
            write(folder / f"qrels/{split}.tsv", [{"query-id": q, "corpus-id": d, "score": n} for q, _, d, n in rows])
        return
    texts = "".join(f"{each['doc_id']}\t{each['title']} {each['summary']}\n" for each in DOCUMENTS)
    write_text(folder / "collection.tsv.gz", texts)
    write_text(folder / "queries.tsv", "".join(f"{query_id}\t{query}\n" for query, query_id in ids.items()))
    write_text(folder / "qrels.txt", "\n".join(lines["train"] + lines["test"]) + "\n")
    if layout == "msmarco":
        write_text(folder / "qidpidtriples.tsv", "q7\td21\td22\nq7\td21\td23\n")


@pytest.mark.parametrize("layout", ["beir", "trec", "msmarco"])
def test_judged_collections(layout: str, tmp_path: Path) -> None:
    _judged(tmp_path / "raw", layout)
    flags = ["--candidates", 20, "--shares", 0, 1, 1, 1, "--hard_skip", 1]
    found = prepared(tmp_path / "raw", tmp_path / "out", *flags, mapping=layout)
    if layout == "beir":  # the other files are no splits
        assert [group.query_id for group in found["judged"]] == ["q0", "q2"]
        assert [group.query_id for group in found["test"]] == ["q4"]
    labels = {
        (group.query_id, document.doc_id): document.label
        for name in ("judged", "dev", "test")
        for group in found.get(name, [])
        for document in group.documents
    }
    expected: dict[tuple[str, str], float] = {("q0", "d0"): 2, ("q0", "d5"): 0, ("q2", "d6"): 1, ("q4", "d12"): 3}
    assert labels == expected | ({("q7", "d21"): 1} if layout == "msmarco" else {})
    assert {query.query_id for query in found["pool"]}.isdisjoint(
        group.query_id for name in ("dev", "test") for group in found.get(name, [])
    )
    sources = counts(tmp_path / "out")["sources"]
    assert sources["run"] and sources["random"]


def test_the_pool_has_the_shares_that_are_asked_for_and_no_relevant_hard_ones(tmp_path: Path) -> None:
    _judged(tmp_path / "raw", "beir")
    found = prepared(tmp_path / "raw", tmp_path / "out", "--candidates", 12, "--shares", 0, 1, 1, 1, "--hard_skip", 1,
                     "--hard_depth", 9, mapping="beir")  # fmt: skip
    first = groups(found, "pool")["cheap bike"]
    ids = {document.doc_id for document in first.documents}
    assert {"d0", "d5", "d1", "d2", "d3", "d4"} <= ids and len(ids) <= 14  # those judged, the run's first others
    assert counts(tmp_path / "out")["sources"]["run"] == 4 * len(groups(found, "pool").keys() & {*QUERIES[:5]})
    assert {document.label for document in first.documents} == {None}


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


def _date(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


def test_the_report_is_a_page_of_its_own(tmp_path: Path) -> None:
    raw(tmp_path / "raw")
    write_text(tmp_path / "raw/more-impressions.jsonl", "no JSON\n")
    prepared(tmp_path / "raw", tmp_path / "out", "--position_bias", "estimated", "--max_failed", 1)
    page = (tmp_path / "out/prepare.html").read_text()
    assert page.count("<svg") == 5 and not re.search(r"""(src|href)=["'](?!#)""", page)
    for words in ("240 impressions kept", "no JSON", "propensity", "log.jsonl"):
        assert words in page
    (failed,) = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert failed == {"file": f"{tmp_path}/raw/more-impressions.jsonl", "row": 1, "reason": "no JSON", "record": None}


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
        prepared(root / "many", root / "b", *flags)
        first, second = (
            {name: text for name, text in files(root / side).items() if name != "failed.jsonl"} for side in "ab"
        )
        assert first == second
        count = counts(root / "a")
        failed = (root / "a/failed.jsonl").read_text().splitlines()
        dropped = sum(each["count"] for each in count["dropped"])
        assert count["rows"]["log"] == len(rows) == count["impressions"] + dropped + len(failed)
        assert len(failed) == sum(each["count"] for each in count["failed"])
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


MAPPING = '[log]\nfiles = ["*.jsonl"]\n[log.columns]\nquery = "query"\ndocument = "doc_id"\n'
GOOD = {"session": "s", "time": 1, "query": "cheap bike", "doc_id": "d0", "position": 1, "click": 1}
TSV = "session\tquery\tdoc_id\tposition\tclick\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("impressions.jsonl", {**GOOD, "position": 0}, ":1: position '0' is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "position": None, "click": 0}, ":1: position NULL is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "position": None}, ":1: a click without a position: it was not shown"),
        ("impressions.jsonl", {**GOOD, "position": "top"}, ":1: position 'top' is not 1, 2, ..."),
        ("impressions.jsonl", {**GOOD, "click": "maybe"}, ":1: click 'maybe' is no count"),
        ("impressions.jsonl", {**GOOD, "dwell_s": -3}, ":1: dwell '-3' is no time"),
        ("impressions.jsonl", {**GOOD, "time": "noon"}, ":1: time 'noon' is neither seconds nor a date"),
        ("impressions.jsonl", {**GOOD, "query": " "}, ":1: no query"),
        ("impressions.jsonl", {**GOOD, "doc_id": None}, ":1: no document"),
        ("impressions.jsonl", f"{json.dumps(GOOD)}\n{{half", ":2: no JSON"),
        ("impressions.jsonl", [], "nothing is left of impressions"),
        ("impressions.parquet", "PAR1", ": cannot be read: "),
        ("impressions.txt", "x", "neither its name nor 'format'"),
        ("impressions.tsv", f"{TSV}s\tq\td0\t1\t1\n".replace("position", "place"), "no column 'position'"),
        ("impressions.tsv", f"{TSV}s\tq\td0\t1\t1\ns\tq\td0\tone\t1\n", ":3: position 'one'"),
        ("impressions.tsv", f"{TSV}s\tq\n", ":2: no document"),
        ("pages.jsonl", {"query": "q", "doc_ids": ["d0", "d1"], "clicks": [1]}, "click has 1 values for 2 documents"),
        ("pages.jsonl", {"query": "q", "doc_ids": "d0", "clicks": [1]}, ":1: document is no list"),
        ("pages.jsonl", {"query": "q", "doc_ids": ["d0"], "clicks": [1], "positions": [0]}, ":1: position '0'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_taken_is_named(
    name: str, content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw/documents.jsonl", DOCUMENTS)
    text = content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in [content] if row)
    write_text(tmp_path / "raw" / name, text)
    mapping = "pages" if name.startswith("pages") else "impressions"
    flags = ["--mapping", mapping, "--input", tmp_path / "raw", "--output_dir", tmp_path / "out"]
    assert message in fails(prepare, capsys, *flags)
    assert [*tmp_path.iterdir()] == [tmp_path / "raw"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("[log\n", "no TOML"),
        ("[clicks]\n", "[clicks] is none of log, documents, queries, judgments, run"),
        ('[log]\nfiles = ["*.jsonl"]\n', "'columns' must be a table of names"),
        ('[log]\nfiles = ["*.jsonl"]\ncolumns = { query = "query" }\n', "no column is mapped to 'document'"),
        ('[log]\nfile = "x"\ncolumns = {}\n', "'file' is none of"),
        (MAPPING + 'rank = "position"\n', "'rank' is none of"),
        (MAPPING + 'position = "place"\n', "no row has 'place' for 'position'"),
        (MAPPING + 'position = "json ->> 1 +"\n', "Parser Error"),
        (MAPPING.replace("*.jsonl", "*.tsv"), "no file in "),
        ('[documents]\nfiles = ["*.jsonl"]\ncolumns = { document = "doc_id" }\n', "no files of a log"),
        (MAPPING.replace('"doc_id"', '"doc_id"\n[log.colums]'), "'colums' is none of"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(
    mapping: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "impressions.jsonl", impressions())
    path = write_text(tmp_path / "own.toml", mapping)
    assert message in fails(prepare, capsys, "--mapping", path, "--output_dir", tmp_path / "out")


def test_files_that_cannot_be_read_and_schemas_that_drift_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "raw"
    write(folder / "documents.jsonl", DOCUMENTS)
    rows = impressions()
    half = write(folder / "impressions/c.jsonl.gz", rows[80:])
    half.write_bytes(half.read_bytes()[:-30])
    write(folder / "impressions/a.parquet", rows[:40])
    write(folder / "impressions/b.parquet", [{**row, "position": f"{row['position']}"} for row in rows[40:80]])
    write(folder / "impressions/d.parquet", [{"rank": row.pop("position"), **row} for row in impressions()[80:120]])
    flags = ["--mapping", "impressions", "--input", folder, "--output_dir", tmp_path / "out"]
    assert f"{folder}/impressions/c.jsonl.gz: cannot be read: " in fails(prepare, capsys, *flags, "--max_failed", 1)
    prepared(folder, tmp_path / "out", "--max_failed", 2)
    found = [json.loads(line) for line in (tmp_path / "out/failed.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["row"]) for each in found] == [("c.jsonl.gz", None), ("d.parquet", None)]
    assert "no column 'position'" in found[1]["reason"]
    assert counts(tmp_path / "out")["impressions"] == 80
