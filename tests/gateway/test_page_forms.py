"""Reading and writing of the page, by its own functions in a real Chromium; no server is needed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from client import InvalidRequestError
from client.gateway.page import read_examples, read_page
from client.records import NAMES
from tests.support.browsers import chromium
from trainer.measures.metrics import ndcg

Record = dict[str, Any]
RECORDS: list[Record] = [
    {"doc_id": "a", "title": 'A 5" disk, and more', "summary": "=SUM(A1)", "label": 3},
    {"doc_id": "7", "title": "<b>bold</b>", "summary": "line one\nline two; and, \"more\"", "label": None},
    {"doc_id": "c", "title": "", "summary": "東京の天気", "label": 0.5},
]  # fmt: skip
QUERY = "weather, in tokyo"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(read_page()[0])
        yield page


def table(rows: list[Record], separator: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines(rows: list[Record]) -> str:
    return "\n".join(map(json.dumps, rows))


GROUP = {"query": QUERY, "documents": RECORDS}
OTHER = {"query": "none", "documents": ["stone"]}
RENAMED = [
    {"_id": one["doc_id"], "title": one["title"], "text": one["summary"], "label": one["label"]} for one in RECORDS
]
FORMS = {
    "JSON lines": ["", lines(RECORDS)],
    "JSON lines, after a mark": ["", "\ufeff" + lines(RECORDS)],
    "other names": ["", lines(RENAMED)],
    "JSON": ["", json.dumps(RECORDS)],
    "JSON for people": ["", json.dumps(RECORDS, indent=2)],
    "a request": [QUERY, json.dumps(GROUP, indent=2)],
    "queries": [QUERY, lines([GROUP, OTHER])],
    "queries as JSON": [QUERY, json.dumps([GROUP, OTHER])],
    "CSV": ["", table(RECORDS, ",")],
    "CSV of a spreadsheet": ["", "\ufeff" + table(RECORDS, ";")],
    "TSV": ["", table(RECORDS, "\t")],
    "CSV with queries": [QUERY, table([{"query": QUERY, **one} for one in RECORDS], ",")],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_documents(page: Page, form: str) -> None:
    query, text = FORMS[form]
    first = page.evaluate("text => read(text).queries[0]", text)
    assert first["query"] == query
    read = [{**one, "summary": one["text"], "doc_id": one["id"]} for one in first["documents"]]
    assert [{name: one[name] for name in RECORDS[0]} for one in read] == RECORDS
    again = page.evaluate("documents => read(written(documents)).queries[0].documents", first["documents"])
    assert again == first["documents"]


def test_documents_have_the_clients_names_of_which_empty_ones_do_not_count(page: Page) -> None:
    for field, names in NAMES.items():
        for name in names:
            given = {"title": "", **dict.fromkeys(names, ""), "summary": None, name: "x"}
            (found,) = page.evaluate("text => read(text).queries[0].documents", json.dumps([given]))
            assert found[{"doc_id": "id", "summary": "text"}.get(field, field)] == "x"


@pytest.mark.parametrize("text", ["title of a book\nand its text", "[updated] news\nstone", "text", "a, b\nc, d"])
def test_lines_that_look_like_another_form_are_lines(page: Page, text: str) -> None:
    documents = page.evaluate("text => read(text).queries[0].documents", text)
    assert [one["text"] for one in documents] == text.split("\n")


AT_FAULT = [
    ('{"text": "a"}\n\n{b', "line 3: is not JSON, though the first one looks like it."),
    ('{"text": "a"}\nriver', "line 2: is not JSON, though the first one looks like it."),
    ('{"text": "a"}\nnull', "line 2: needs an object or a string."),
    ('{"url": "a"}', "document 1: needs a title, a summary or a text."),
    ('[{"text": "a"}, {"text": 3}]', "document 2: text must be a string."),
    ('{"text": "a", "label": "good"}', "document 1: label must be a number."),
    ('{"query": "a", "documents": ["b", 3]}', "document 1, document 2: needs an object or a string."),
    ('{"query": "a", "documents": ["b"]}\n{"query": "c"}', "line 2: needs a list of documents, as the first one has."),
    ("title,summary\na,b\nc", "row 3: has 1 cells, and the header 2."),
    ('[\n  {"text": 1,\n}]', "this is not JSON: "),
    ('title,summary\na,"b\nc', "row 2: has a quotation mark that is not closed."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), AT_FAULT)
def test_what_is_at_fault_is_named(page: Page, text: str, message: str) -> None:
    said = page.evaluate("text => { try { read(text); } catch (error) { return error.message; } }", text)
    assert said == f"Candidates, {message}" or (said.startswith("Candidates: ") and message in said)


def test_ndcg_is_the_trainers(page: Page) -> None:
    labels: list[float | None] = [0, 3, None, 1.5, -2, 2, 0, 0, 1, 0, 0, 3]
    ours = page.evaluate("labels => ndcgOf(labels.map((label) => ({ label })))", labels)
    judged = {str(place): label for place, label in enumerate(labels) if label is not None}
    scores = {str(place): -float(place) for place in range(len(labels))}
    assert ours == pytest.approx(ndcg(judged, scores, 10))
    assert page.evaluate("ndcgOf([{ label: null }, { label: 0 }])") is None


def test_whole_words_of_the_query_are_marked(page: Page) -> None:
    marked = "([query, text]) => text.split(wordsOf(query)).filter((_, index) => index % 2)"
    assert page.evaluate(marked, ["Bike (c++) 3", "A bike, BIKES and C: 3, 33"]) == ["bike", "C", "3"]
    assert page.evaluate(marked, ["天気", "東京の天気です"]) == ["天気"]
    assert page.evaluate("wordsOf('?! ')") is None


def test_a_table_runs_nothing_in_a_spreadsheet_and_is_read_again(page: Page) -> None:
    ranking = """documents => csvOf(rowsOf("q", [{ model: "m", ranked: documents.map((one) =>
        ({ ...one, score: -1.5, probability: 0.2, truncated: false })) }]))"""
    documents = page.evaluate("text => read(text).queries[0].documents", lines(RECORDS))
    text = page.evaluate(ranking, documents)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["summary"] for row in rows] == ["'=SUM(A1)", *(one["summary"] for one in RECORDS[1:])]
    assert {row["score"] for row in rows} == {"-1.5"}
    assert [one["id"] for one in page.evaluate("text => read(text).queries[0].documents", text)] == ["a", "7", "c"]


@pytest.mark.parametrize("fragment", ["#ask=", "#ask=x", "#ask=%%", "#ask=q1YqLE0tqlSyUgIA"])
def test_a_link_that_was_cut_says_so(page: Page, fragment: str) -> None:
    said = page.evaluate("link => askedBy(link).then(() => '', (error) => error.message)", fragment)
    assert said == "This link is not whole."
    assert page.evaluate("askedBy('#results')") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no queries in this file"), (lines([GROUP, {"query": "a"}]), ":2: 'documents' must be a list")],
)
def test_examples_at_fault_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"--examples {path}")


def test_an_example_cannot_leave_its_element(page: Page) -> None:
    hostile = json.dumps({"query": "</script><script>window.hacked = 1</script><!--", "documents": ["/* script */"]})
    assert page.context.browser
    other = page.context.browser.new_page()
    other.set_content(read_page([hostile])[0])
    assert other.evaluate("read(at('examples').textContent).queries[0].query") == json.loads(hostile)["query"]
    assert other.evaluate("window.hacked === undefined")
