"""What the benches share with users: a first stage's candidates, ranked by the running server."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from bench import rerank
from model_repository.tokenizer.pair_encoding import Document
from tests.support.checkpoints import write_groups
from tests.support.servers import Reference, Server
from trainer.data.rankings import read_run
from trainer.data.records import read_groups


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "data.jsonl", queries=3)


def first_stage(path: Path, found: dict[str, list[str]]) -> Path:
    lines = [f"{query} Q0 {doc} {rank} 1.0 first" for query in found for rank, doc in enumerate(found[query], start=1)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_candidates_of_a_run_are_ranked_as_pytorch_ranks_them(
    server: Server, reference: Reference, data: Path, tmp_path: Path
) -> None:
    found = {"q0": ["d5", "d1", "d2"], "q2": ["d0", "d3"]}
    run = first_stage(tmp_path / "first.run", found)
    flags = ["--data", data, "--run", run, "--output", tmp_path / "served.run", "--url", server.url]
    assert rerank.main([str(flag) for flag in flags]) == 0
    served = read_run(tmp_path / "served.run")
    groups = {group.query_id: group for group in read_groups(data)}
    assert served.keys() == found.keys()
    for query_id, doc_ids in found.items():
        group = groups[query_id]
        texts = {each.doc_id: Document(title=each.title, summary=each.summary) for each in group.documents}
        scores = dict(zip(doc_ids, reference(group.query, [texts[doc_id] for doc_id in doc_ids]).scores, strict=True))
        order = sorted(served[query_id], key=lambda doc_id: -served[query_id][doc_id])
        assert order == sorted(doc_ids, key=lambda doc_id: -scores[doc_id])


def test_a_bi_encoder_ranks_by_the_cosine_of_its_vectors(served_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    found = {"q1": ["d0", "d1", "d2", "d3"]}
    run = first_stage(tmp_path / "first.run", found)
    flags = ["--data", data, "--run", run, "--output", tmp_path / "bi.run", "--bi_encoder", served_checkpoint]
    assert rerank.main([str(flag) for flag in flags]) == 0
    (group,) = (group for group in read_groups(data) if group.query_id == "q1")
    texts = {each.doc_id: f"{each.title} {each.summary}" for each in group.documents if each.doc_id in found["q1"]}
    model = SentenceTransformer(str(served_checkpoint))
    query, documents = model.encode(group.query), model.encode(list(texts.values()))
    cosines = dict(zip(texts, model.similarity(query, documents)[0].tolist(), strict=True))
    ranking = read_run(tmp_path / "bi.run")["q1"]
    assert sorted(ranking, key=lambda doc_id: -ranking[doc_id]) == sorted(texts, key=lambda doc_id: -cosines[doc_id])


def test_bad_input_is_named_and_no_run_is_left(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    unknown = first_stage(tmp_path / "unknown.run", {"q0": ["d0", "d99"]})
    known = first_stage(tmp_path / "known.run", {"q0": ["d0"]})
    for run, url, message in ((unknown, server.url, "d99"), (known, "localhost:9", "no server answers")):
        flags = ["--data", data, "--run", run, "--output", tmp_path / "served.run", "--url", url]
        assert rerank.main([str(flag) for flag in flags]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*served.run*"))
