"""``trainer.queries``: what its file holds, that it is the same each time, and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.checkpoints import write_groups
from tests.support.records import written
from tests.support.stages import FEW, fails, run
from trainer import distill, init, queries, score
from trainer.collection.words import ENGLISH, units
from trainer.data.rankings import read_scores
from trainer.data.records import QueryGroup, read_groups
from trainer.measures.baselines import Bm25Index
from trainer.scoring.bi_encoder import BiEncoder
from trainer.scoring.checkpoint import ScoringArguments

# Every word of the tests' documents is in many of them.
DRAWN = ["--count", 30, "--candidates", 9, "--depths", 6, 20, "--common_share", 1]
DOCUMENTS = [{"doc_id": f"p{number}", "title": "", "summary": f"plain words {number}"} for number in range(3)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten queries with the ids d0 to d5, each for another text."""
    return write_groups(tmp_path_factory.mktemp("pool") / "pool.jsonl", queries=10)


@pytest.fixture(scope="module")
def made(pool: Path, bi_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    plain = written(folder / "plain.jsonl", *DOCUMENTS, {"doc_id": "again", "summary": "plain words 2"})
    real = written(folder / "real.jsonl", {"query_id": "r1", "query": "Old bridge"}, {"query": "camera"})
    output = folder / "made.jsonl"
    sources = ["--data", pool, "--documents", plain, "--queries", real]
    scores = folder / "made.parquet"
    run(queries, *sources, "--bi_encoder", bi_encoder, "--output", output, "--scores", scores, *DRAWN)
    return output


def ranks(group: QueryGroup, scores: Any, places: dict[str, int]) -> list[int]:
    """The candidates' ranks among all documents."""
    order = np.argsort(np.argsort(-scores, kind="stable"))
    return [int(order[places[document.text]]) for document in group.documents]


def test_queries_have_words_of_their_document_and_candidates_by_bands(made: Path, pool: Path, bi_encoder: Path) -> None:
    """The bands are checked against the cosines of all documents, from outside."""
    groups = read_groups(made)
    texts = list(dict.fromkeys(document.text for group in read_groups(pool) for document in group.documents))
    texts += [each["summary"] for each in DOCUMENTS]
    places = {text: place for place, text in enumerate(texts)}
    encoder = BiEncoder.load(str(bi_encoder), ScoringArguments())
    vectors_NH = encoder.documents(texts, len)
    assert [group.query_id for group in groups[:3]] == ["r1", "real-2", "spans-made-1"]
    assert len(groups) == 32 and len({group.query.casefold() for group in groups}) == 32
    for group in groups:
        assert len({document.doc_id for document in group.documents}) == 9
        assert all((document.label, document.clicks) == (None, 0) for document in group.documents)
        kind = group.query_id.partition("-")[0]
        source = group.documents[0]
        if kind == "spans":
            begun = next((each for each in ENGLISH if group.query.startswith(f"{each} ")), "")
            words = units(group.query.removeprefix(begun))
            assert 2 <= len(words) <= 5 and {*words} <= {*units(source.text)}
        if kind == "titles":
            assert group.query == source.title
        # A query's own document may be anywhere; it takes a place near the top.
        found = ranks(group, vectors_NH @ encoder.queries([group.query])[0], places)
        others = found if kind in ("r1", "real") else found[1:]
        assert all(rank <= 6 for rank in others[:-6])
        assert all(5 <= rank <= 20 for rank in others[-6:-3])
        assert all(rank >= 19 for rank in others[-3:])
    assert {group.query_id.partition("-")[0] for group in groups} == {"r1", "real", "spans", "titles"}


def test_scores_that_come_along_are_those_of_the_weak_teacher(made: Path, bi_encoder: Path, tmp_path: Path) -> None:
    run(score, "--bi_encoder", bi_encoder, "--data", made, "--output", tmp_path / "scores.parquet")
    apart, along = read_scores(tmp_path / "scores.parquet"), read_scores(made.with_suffix(".parquet"))
    assert {query_id: [*pairs] for query_id, pairs in apart.items()} == {
        query: [*pairs] for query, pairs in along.items()
    }
    for query_id, pairs in apart.items():
        assert [*pairs] == [*along[query_id]]
        assert [*along[query_id].values()] == pytest.approx([*pairs.values()], abs=1e-5)


def test_the_seed_decides_and_nothing_else(
    made: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, changes in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--candidates", 6])):
        run(queries, "--data", pool, "--output", tmp_path / name / "made.jsonl", *DRAWN, *changes)
        files.append((tmp_path / name / "made.jsonl").read_text())
    assert files[0] == files[1] != files[2]
    first, fewer = ([group.query for group in read_groups(tmp_path / name / "made.jsonl")] for name in "ad")
    assert first == fewer
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{tmp_path / 'a' / 'made.jsonl'}: 30 queries (15 spans, 15 titles) with 9 of 60 documents each"
    )


def test_without_a_bi_encoder_bm25_ranks(pool: Path, tmp_path: Path) -> None:
    output = tmp_path / "made.jsonl"
    run(queries, "--data", pool, "--output", output, "--kinds", "titles", *DRAWN)
    texts = list(dict.fromkeys(document.text for group in read_groups(pool) for document in group.documents))
    index, places = Bm25Index(texts), {text: place for place, text in enumerate(texts)}
    for group in read_groups(output):
        found = ranks(group, index.scores(group.query), places)[1:]
        assert all(rank <= 6 for rank in found[:2]) and all(rank >= 19 for rank in found[-3:])


def test_a_causal_lm_writes_one_query_for_a_document(
    pool: Path, llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greedily: alone or among others, each document gets the same one, unless two tokens were as likely."""
    flags = ["--data", pool, "--causal_lm", llm, *DRAWN, "--count", 8]
    by_source = []
    for rows in (1, 32):
        output = tmp_path / f"{rows}.jsonl"
        run(queries, "--output", output, *flags, "--rows_per_batch", rows)
        assert "8 queries (8 written)" in capsys.readouterr().out
        by_source.append({group.documents[0].doc_id: group.query for group in read_groups(output)})
    assert by_source[0].keys() == by_source[1].keys()
    assert len(by_source[0].items() & by_source[1].items()) >= 7
    flags += ["--count", 61]
    assert "--count 61: the documents give " in fails(queries, capsys, "--output", tmp_path / "x", *flags)


def test_a_weak_teacher_scores_them_and_a_student_with_its_weights_learns_from_it(
    made: Path, bi_encoder: Path, tmp_path: Path
) -> None:
    scores, base = tmp_path / "scores.parquet", tmp_path / "base"
    run(score, "--bi_encoder", bi_encoder, "--data", made, "--output", scores)
    run(init, "--pretrained", bi_encoder, "--pooling", "late_interaction", "--output_dir", base)
    out = ["--output_dir", tmp_path / "student"]
    run(distill, "--model", base, "--data", made, "--scores", scores, *out, *FEW, "--max_steps", 20)
    losses = [point["loss"] for point in json.loads((tmp_path / "student/training.json").read_text())["loss_curve"]]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_bad_input_is_one_line(pool: Path, llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made.jsonl"
    there = written(tmp_path / "there.jsonl", *DOCUMENTS)
    wordless = written(tmp_path / "wordless.jsonl", {"doc_id": "w7", "summary": "?!"}, {"doc_id": "w8", "title": "-"})
    twice = written(tmp_path / "twice.jsonl", {"query_id": "a", "query": "x"}, {"query_id": "a", "query": "y"})
    blank = written(tmp_path / "blank.jsonl", {"query_id": "a", "query": "x"}, {"query_id": "b", "query": " "})
    clash = written(tmp_path / "clash.jsonl", {"query_id": f"spans-{output.stem}-3", "query": "x"})
    empty = written(tmp_path / "empty.txt")
    data = ["--data", pool, *DRAWN]
    for flags, message in (
        (DRAWN, "give the documents: --data"),
        (["--documents", wordless], "no document with words; documents without words, left out: 2, such as 'w7'"),
        (["--documents", tmp_path / "none.jsonl"], f"{tmp_path / 'none.jsonl'}: cannot be read"),
        (["--data", there], f"{there}:1: the query has no 'query_id'"),
        (["--documents", there], "--depths 20 500 with 8 far candidates need more than 508 documents; there are 3"),
        ([*data, "--count", 10**6], "--count 1,000,000: the documents give "),
        ([*data, "--count", 0], "--count must be at least 1, or 0 where --queries are given"),
        ([*data, "--kinds", "spams"], "--kinds 'spams' is none of spans, titles, written"),
        ([*data, "--kinds", "written"], "--kinds written and --causal_lm need each other"),
        ([*data, "--kinds", "spans", "--causal_lm", llm], "--kinds written and --causal_lm need each other"),
        ([*data, "--causal_lm", llm, "--prompt", "Write."], "--prompt has no {document}"),
        ([*data, "--causal_lm", tmp_path], f"{tmp_path}: "),
        ([*data, "--max_tokens", 8], "--max_tokens is for a --bi_encoder or a --causal_lm"),
        ([*data, "--bi_encoder", there, "--max_tokens", 0], "--max_tokens must be at least 1, not 0"),
        ([*data, "--scores", output], "--scores and --output are one file"),
        ([*data, "--common_share", 0], "--common_share must be above 0"),
        ([*data, "--queries", twice], f"{twice}:2: query_id 'a' again"),
        ([*data, "--queries", blank], f"{blank}:2: 'query' must be a string that is not blank"),
        ([*data, "--queries", clash], f"query_id 'spans-{output.stem}-3' of a real query is that of a drawn one"),
        ([*data, "--queries", empty], f"{empty}: no queries in this file"),
        ([*data, "--output", there], f"{there}: exists already"),
        ([*data, "--output", there / "made.jsonl"], "cannot be written"),
    ):
        assert message in fails(queries, capsys, "--output", output, *flags)
    assert not output.exists() and not list(tmp_path.glob(".*"))


def test_what_a_user_should_know_of_the_documents_is_said(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = written(tmp_path / "plain.jsonl", {"doc_id": "w7", "summary": "..."})
    run(queries, "--data", pool, "--documents", plain, "--output", tmp_path / "made.jsonl", *DRAWN)
    said = capsys.readouterr().err
    assert "documents without words, left out: 1, such as 'w7'" in said
    assert "documents whose id another text has, with new ones: 54, such as 'd0-2'" in said


def test_real_queries_alone_are_taken_from_lines_of_text(pool: Path, tmp_path: Path) -> None:
    lines = written(tmp_path / "log.txt", "river bridge", "", "  River BRIDGE ", "garden")
    output = tmp_path / "made.jsonl"
    run(queries, "--data", pool, "--queries", lines, "--output", output, *DRAWN, "--count", 0)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(each["query_id"], each["query"]) for each in records] == [("log-1", "river bridge"), ("log-4", "garden")]
