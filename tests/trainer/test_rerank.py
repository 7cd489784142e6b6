"""``trainer.rerank``: the run that it writes, and what it says of a run that does not fit the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checkpoints import write_candidates
from tests.support.stages import fails, run
from trainer import evaluate, rerank
from trainer.data.rankings import best_first, read_run
from trainer.rerank import reordered

DEPTH = 4


@pytest.fixture(scope="module")
def candidates(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_candidates(tmp_path_factory.mktemp("candidates") / "first.run", data)


def test_the_first_documents_are_reranked_and_the_others_stay_below(
    bert: Path, data: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The measures are those of the checkpoint on these candidates, and ranks and scores have one order."""
    output = tmp_path / "reranked.run"
    run(rerank, "--model", bert, "--data", data, "--run", candidates, "--depth", DEPTH, "--output", output)
    assert capsys.readouterr().out == f"{output}: 16 pairs of 4 queries reranked\n"
    before, after = read_run(candidates), read_run(output)
    assert list(after) == list(before)
    for query_id, documents in before.items():
        order, old = best_first(after[query_id]), best_first(documents)
        assert set(order[:DEPTH]) == set(old[:DEPTH])
        assert order[DEPTH:] == old[DEPTH:]
    columns = [line.split() for line in output.read_text().splitlines()]
    assert {line[5] for line in columns} == {"scorer"}
    scores: dict[str, dict[str, float]] = {query_id: {} for query_id in after}
    for query_id, _, doc_id, _, score, _ in columns:
        scores[query_id][doc_id] = float(score)
    assert all(best_first(scores[query_id]) == best_first(after[query_id]) for query_id in after)
    assert all(len(set(documents.values())) == len(documents) for documents in scores.values())
    flags = ["--candidates", candidates, "--depth", DEPTH, "--output", tmp_path / "table.json"]
    run(evaluate, "--data", data, "--systems", f"run={output}", f"checkpoint={bert}", "random", *flags)
    rows = {row.pop("system"): row for row in json.loads((tmp_path / "table.json").read_text())}
    assert rows["run"].pop("documents_per_second") is None
    assert rows["checkpoint"].pop("documents_per_second") > 0
    assert [Path(rows[name].pop("source")) for name in ("run", "checkpoint")] == [output, bert]
    assert rows["run"] == rows["checkpoint"]
    assert rows["run"]["ndcg@10"] != rows["random"]["ndcg@10"]


SCORES = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([-7.5, -1.0, 0.0, 0.1, 3e4]), min_size=1)


@given(SCORES, st.dictionaries(st.sampled_from("ijklmn"), st.integers(-9, 9)))
def test_every_document_is_in_its_place_once(scores: dict[str, float], below: dict[str, float]) -> None:
    """By rank as by score, ties as trec_eval breaks them."""
    ranked = reordered({**below, **dict.fromkeys(scores, 0.0)}, scores)
    assert ranked.keys() == scores.keys() | below.keys()
    assert list(ranked) == sorted(ranked, key=lambda doc_id: (ranked[doc_id], doc_id), reverse=True)
    assert {doc_id: ranked[doc_id] for doc_id in scores} == scores
    assert [doc_id for doc_id in ranked if doc_id in below] == best_first(below)


def test_what_does_not_fit_is_named(
    bert: Path, data: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", bert, "--data", data, "--output", tmp_path / "reranked.run", "--run"]
    first, last = candidates.read_text().splitlines()[0], candidates.read_text().splitlines()[-1]
    path = tmp_path / "a.run"

    path.write_text(f"{first}\nq0 Q0 unheard-of 2 0 x\n")
    error = fails(rerank, capsys, *flags, path)
    assert error == f"error: {path}: document 'unheard-of' of query 'q0' is not in the data"
    run(rerank, *flags, path, "--depth", 1)
    assert best_first(read_run(tmp_path / "reranked.run")["q0"]) == ["d0", "unheard-of"]
    assert f"{path}: 1 of 4 queries of the data are in it; the others are left out" in capsys.readouterr().err

    path.write_text(f"other Q0 d0 1 0 x\n{last}\n")
    run(rerank, *flags, path)
    assert list(read_run(tmp_path / "reranked.run")) == ["q3"]
    note = f"{path}: 1 of its 2 queries are not in the data, such as 'other': they are left out"
    assert note in capsys.readouterr().err

    (tmp_path / "reranked.run").unlink()
    path.write_bytes(b"PAR1\xff\xfe\n")
    assert f"{path}:1: " in fails(rerank, capsys, *flags, path)
    path.write_text("other Q0 d0 1 0 x\n")
    assert f"{path}: none of its 1 queries is in the data, such as 'other'" in fails(rerank, capsys, *flags, path)
    assert "--depth must be at least 1, not 0" in fails(rerank, capsys, *flags, path, "--depth", 0)
    assert "--rows_per_batch must be at least 1" in fails(rerank, capsys, *flags, path, "--rows_per_batch", 0)
    assert {each.name for each in tmp_path.iterdir()} == {"a.run"}
