"""Every layout of a log gives the same records, and judged collections give theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.logs import (
    DOCUMENTS,
    HALVES,
    QUERIES,
    counts,
    files,
    groups,
    impressions,
    pages,
    prepared,
    raw,
    write,
    write_text,
)
from tests.support.stages import fails
from trainer import prepare
from trainer.preparation.mapping import READY


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    prepared(raw(folder / "raw"), folder / "out", *HALVES)
    return files(folder / "out")


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


def _odd_names(folder: Path) -> str:
    """The names of files are patterns of each other and their paths absolute; a column is named row."""
    rows = [{"row": "x", **row} for row in impressions()]
    write(folder / "log1.tsv", rows[:100])
    second = write(folder / "log[1].tsv", rows[100:])
    second.write_text(second.read_text().replace("\n", "\n\n", 1))
    write_text(folder / "log-none.tsv", "no column\n")
    write(folder / "documents.jsonl", DOCUMENTS)
    mapping = (READY / "impressions.toml").read_text().replace(
        '["*impressions*", "impressions/*"]', f'["{folder}/log*", "!log-n*"]'
    )  # fmt: skip
    return str(write_text(folder / "own.toml", mapping))


@pytest.mark.parametrize(
    "layout",
    [_as(".parquet"), _as(".csv"), _as(".tsv.gz"), _as(".jsonl.zst"), _with_texts, _pages(".jsonl"),
     _pages(".parquet"), _own_mapping, _odd_names],
    ids=["parquet", "csv", "tsv-gz", "jsonl-zst", "texts", "pages-jsonl", "pages-parquet", "own", "names"],
)  # fmt: skip
def test_every_layout_gives_the_same_files(
    layout: Callable[[Path], str], plain: dict[str, bytes], tmp_path: Path
) -> None:
    prepared(tmp_path / "raw", tmp_path / "out", *HALVES, mapping=layout(tmp_path / "raw"))
    assert files(tmp_path / "out") == plain


def _judged(folder: Path, layout: str) -> None:
    """Two judged queries of training, or of any split by hash, one of test, and what a first stage found for all."""
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
            write(
                folder / f"qrels/{split}-00.tsv", [{"query-id": q, "corpus-id": d, "score": n} for q, _, d, n in rows]
            )
        return
    texts = "".join(f"{each['doc_id']}\t{each['title']} {each['summary']}\n" for each in DOCUMENTS)
    write_text(folder / "collection.tsv.gz", texts)
    write_text(folder / "queries.tsv", "".join(f"{query_id}\t{query}\n" for query, query_id in ids.items()))
    write_text(folder / "qrels.txt", "\n".join(lines["train"]) + "\n\n")
    write_text(folder / "qrels.test.small.tsv", "\n".join(lines["test"]) + "\n")
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
    assert "q4" in [group.query_id for group in found["test"]]
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


def test_a_run_alone_fills_the_pool(tmp_path: Path) -> None:
    _judged(tmp_path / "raw", "beir")
    found = prepared(tmp_path / "raw", tmp_path / "out", "--candidates", 8, "--hard_skip", 1, mapping="beir")
    assert counts(tmp_path / "out")["sources"]["run"] == 8 * len(groups(found, "pool").keys() & {*QUERIES[:5]})


def test_what_became_of_judgments_is_said_where_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _judged(tmp_path / "raw", "beir")
    write(tmp_path / "raw/queries.jsonl", [{"_id": "other", "text": " "}])
    (tmp_path / "raw/first.run").unlink()
    flags = ["--mapping", "beir", "--input", tmp_path / "raw", "--output_dir", tmp_path / "out"]
    assert "nothing is left of beir: 4 judgments of unknown queries" in fails(
        prepare, capsys, *flags, "--max_failed", 1
    )
