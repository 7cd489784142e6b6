"""Pages that lack a list, or show a document twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.logs import CLICKED, DOCUMENTS, QUERIES, counts, files, groups, impressions, pages, prepared, write
from tests.support.stages import fails
from trainer import prepare


@pytest.mark.parametrize("name", [".jsonl", ".parquet"])
@pytest.mark.parametrize("having", [0, 30])
def test_a_page_without_positions_has_its_documents_in_their_order(having: int, name: str, tmp_path: Path) -> None:
    (tmp_path / "bias.tsv").write_text("1 1\n2 0.5\n3 0.25\n4 0.125\n")
    found = pages(impressions())
    without = [{key: value for key, value in page.items() if key != "positions"} for page in found]
    null = [{**page, "positions": None} for page in found[having:]] if having else without
    for folder, rows in (("with", found), ("without", [*found[:having], *null])):
        write(tmp_path / folder / f"pages{name}", rows)
        write(tmp_path / folder / "documents.jsonl", DOCUMENTS)
        prepared(tmp_path / folder, tmp_path / f"{folder}-out", "--position_bias", tmp_path / "bias.tsv",
                 mapping="pages")  # fmt: skip
    assert files(tmp_path / "with-out") == files(tmp_path / "without-out")
    assert counts(tmp_path / "with-out")["positions"] == counts(tmp_path / "without-out")["positions"] != []


def test_of_a_document_shown_twice_in_one_place_the_clicked_row_stays(tmp_path: Path) -> None:
    twice = {"session": "s", "time": 1, "query": QUERIES[0], "doc_ids": ["d0", "d0"], "positions": [1, 1]}
    write(tmp_path / "raw/pages.jsonl", [{**twice, "clicks": [0, 1]}])
    write(tmp_path / "raw/documents.jsonl", DOCUMENTS)
    found = prepared(tmp_path / "raw", tmp_path / "out", mapping="pages")
    assert [each.clicks for each in groups(found, *CLICKED)[QUERIES[0]].documents] == [1]
    assert [each["count"] for each in counts(tmp_path / "out")["dropped"]] == [1]


def test_a_session_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--mapping", "pages", "--input", tmp_path, "--output_dir", tmp_path / "out"]
    assert "--max_session_hours must be above 0" in fails(prepare, capsys, *flags, "--max_session_hours", "inf")
