"""``trainer.evaluate`` on files of queries, runs and qrels, as its user calls it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.stages import fails, run
from trainer import evaluate

Labels = Mapping[str, float | None]


def data(path: Path, queries: Mapping[str, Labels], text: str = "river") -> Path:
    """Queries, each with its documents' labels by id."""
    records = [
        {
            "query_id": query_id,
            "query": "river",
            "documents": [{"doc_id": name, "title": text, "label": label} for name, label in labels.items()],
        }
        for query_id, labels in queries.items()
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def ranking(path: Path, queries: Mapping[str, list[str]], mark: str = "") -> Path:
    """A TREC run of these orders."""
    lines = [
        f"{query_id} Q0 {doc_id} {rank} {-rank} x\n"
        for query_id, order in queries.items()
        for rank, doc_id in enumerate(order, start=1)
    ]
    path.write_text(mark + "".join(lines), encoding="utf-8")
    return path


def table(tmp_path: Path, *flags: object) -> dict[str, dict[str, Any]]:
    """The rows of the report, by system; JSON has no infinity and no NaN."""
    run(evaluate, *flags, "--output", tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    return {row["system"]: row for row in json.loads(text)}


@pytest.mark.parametrize(
    ("labels", "swapped"),
    [({"a": 0.4, "b": 0.2, "c": 0.0}, True), ({"a": 2.5, "b": 1.5, "c": 0.5}, True), ({"a": 3.0, "b": 3.0}, False)],
)
def test_labels_with_fractions_are_gains_as_they_are(tmp_path: Path, labels: Labels, swapped: bool) -> None:
    source = data(tmp_path / "d.jsonl", {"q": labels})
    first, second, *others = labels
    perfect = ranking(tmp_path / "perfect.run", {"q": [first, second, *others]})
    wrong = ranking(tmp_path / "wrong.run", {"q": [second, first, *others]})
    rows = table(tmp_path, "--data", source, "--systems", f"P={perfect}", f"W={wrong}")
    assert rows["P"]["ndcg@10"] == 1.0
    assert (rows["W"]["ndcg@10"] < 1.0) == swapped
    assert ("rr@10" in rows["P"]) == (labels == {"a": 3.0, "b": 3.0})  # needs whole labels


def test_a_measure_that_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 0.4, "b": 0.0}})
    for measure, message in (
        ("RR@10", "RR@10 needs whole labels of at most 100,000, and that of document 'a' of query 'q' is 0.4"),
        ("gain@10", "'gain@10' is not a measure"),
        ("nDCG@0", "'nDCG@0' looks at no document"),
        ("INSQ", "'INSQ' is not a measure of ir_measures: invalid param"),
    ):
        assert message in fails(evaluate, capsys, "--data", source, "--systems", "random", "--measures", measure)
    whole = data(tmp_path / "whole.jsonl", {"q": {"a": 1, "b": 0}})
    message = fails(evaluate, capsys, "--data", whole, "--systems", "random", "--measures", "alpha_nDCG@10")
    assert "the measure alpha_nDCG@10 cannot be computed here: Unsupported" in message  # without another package
    far = data(tmp_path / "far.jsonl", {"q": {"a": 10**9, "b": 0}})
    assert "is 1e+09" in fails(evaluate, capsys, "--data", far, "--systems", "random", "--measures", "RR@10")


def test_what_a_run_lacks_counts_0_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data(tmp_path / "d.jsonl", {name: {"a": 1, "b": 0} for name in "pqrs"})
    orders = {name: ["a", "b"] for name in ("p", "q", "typo")}
    rows = table(tmp_path, "--data", source, "--systems", ranking(tmp_path / "half.run", orders))
    (row,) = rows.values()
    assert (row["ndcg@10"], row["queries"], row["queries_scored"]) == (0.5, 4, 2)
    printed = capsys.readouterr().out
    assert "half.run: 2 of 4 judged queries are in it; the others count 0." in printed
    assert "half.run: 1 of its queries are not judged in the data and do not count." in printed
    none = ranking(tmp_path / "none.run", {"typo": ["a"]})
    message = fails(evaluate, capsys, "--data", source, "--systems", none)
    assert message == f"error: {none}: none of its 1 queries is judged in the data, such as 'typo'"


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 1, "b": 0}, "r": {"a": 1, "b": 0}})
    source.write_text("\ufeff" + source.read_text(), encoding="utf-8")
    marked = ranking(tmp_path / "marked.run", {"q": ["a", "b"], "r": ["a", "b"]}, mark="\ufeff")
    qrels = tmp_path / "qrels"
    qrels.write_text("\ufeffq 0 a 0.5\nq 0 b 0\nr 0 b 1\n", encoding="utf-8")  # these replace the labels
    (row,) = table(tmp_path, "--data", source, "--systems", marked, "--qrels", qrels).values()
    assert row["queries_scored"] == 2
    assert row["ndcg@10"] == pytest.approx((1 + 0.63093) / 2, abs=1e-5)


def test_a_path_may_have_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 1, "b": 0}})
    folder = tmp_path / "lr=5e-5"
    folder.mkdir()
    path = ranking(folder / "a.run", {"q": ["a", "b"]})
    assert list(table(tmp_path, "--data", source, "--systems", path, f"N={path}")) == [str(path), "N"]
    assert "two systems have one name" in fails(evaluate, capsys, "--data", source, "--systems", path, path)


def test_every_system_is_compared_on_the_same_pairs(tmp_path: Path) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 2, "b": 1, "c": 0, "d": 0}})
    short = ranking(tmp_path / "short.run", {"q": ["b", "a"]})
    long = ranking(tmp_path / "long.run", {"q": ["c", "a", "b", "d"]})
    rows = table(tmp_path, "--data", source, "--systems", f"short={short}", f"long={long}", "random")
    assert {row["pairs"] for row in rows.values()} == {1}
    assert (rows["short"]["pnr"], rows["long"]["pnr"]) == (0.0, None)  # no discordant pair, so infinite
    apart = ranking(tmp_path / "apart.run", {"q": ["d"]})
    rows = table(tmp_path, "--data", source, "--systems", f"short={short}", f"apart={apart}")
    assert {(row["pairs"], row["pnr"], row["mean_pnr"]) for row in rows.values()} == {(0, None, None)}
    flags = ["--candidates", long, "--depth", 2, "--per_query", tmp_path / "each.jsonl"]
    rows = table(tmp_path, "--data", source, "--systems", f"long={long}", "random", *flags)
    assert {row["pairs"] for row in rows.values()} == {1}  # c and a
    lines = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert [(line["system"], line["query_id"]) for line in lines] == [("long", "q"), ("random", "q")]
    assert lines[0]["ndcg@10"] == rows["long"]["ndcg@10"]
    assert lines[0]["discordant_pairs"] == 1


def test_judged_queries_without_candidates_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And only what a system lacks besides is said of it; what is judged and no candidate is not called unjudged."""
    source = data(tmp_path / "d.jsonl", {**{name: {"a": 1, "b": 0} for name in "pqr"}, "unjudged": {"a": None}})
    first = ranking(tmp_path / "first.run", {"p": ["b", "a"], "q": ["b"], "unjudged": ["a"]})
    whole = ranking(tmp_path / "whole.run", {name: ["a", "b"] for name in ("p", "q", "r", "unjudged")})
    less = ranking(tmp_path / "less.run", {"p": ["a", "b"], "q": ["a"]})  # no candidate of q
    systems = ["random", f"whole={whole}", f"less={less}"]
    rows = table(tmp_path, "--data", source, "--systems", *systems, "--candidates", first)
    assert {name: row["queries_scored"] for name, row in rows.items()} == {"random": 2, "whole": 2, "less": 1}
    assert rows["whole"]["ndcg@10"] == pytest.approx(1 / 3)
    notes = [line for line in capsys.readouterr().out.splitlines() if "queries" in line and ": " in line]
    assert notes == [
        f"{first}: 2 of 3 judged queries have candidates; the others count 0 for every system.",
        "whole: 1 of its queries are not judged in the data and do not count.",
        "less: 1 of 2 judged queries are in it; the others count 0.",
    ]


def test_depth_needs_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 1}})
    assert "--depth" in fails(evaluate, capsys, "--data", source, "--systems", "random", "--depth", "5")


@pytest.mark.parametrize("text", ["", "?!", "a", "河流"])
def test_bm25_of_any_text(tmp_path: Path, text: str) -> None:
    source = data(tmp_path / "d.jsonl", {"q": {"a": 1, "b": 0}}, text=text)
    (row,) = table(tmp_path, "--data", source, "--systems", "bm25").values()
    assert row["tied_pairs"] == 1
