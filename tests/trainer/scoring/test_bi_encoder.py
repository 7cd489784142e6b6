"""A bi-encoder as a teacher: its scores are those of the states that transformers gives, and what is none is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from tests.support.checkpoints import write_groups
from tests.support.stages import fails, run
from trainer import init, score
from trainer.data.rankings import read_scores
from trainer.data.records import read_groups
from trainer.scoring.bi_encoder import BiEncoder, Similarity, _token_vectors
from trainer.scoring.checkpoint import ScoringArguments, progress


@torch.inference_mode()
def states(directory: Path, text: str) -> torch.Tensor:
    """The last hidden states [tokens, H] of one text alone."""
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    found: torch.Tensor = model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt"))[0][0]
    return found


def similarity_of(how: str, query_TH: torch.Tensor, document_TH: torch.Tensor) -> float:
    if how == "cosine":
        return torch.cosine_similarity(query_TH.mean(0), document_TH.mean(0), dim=0).item()
    return torch.cosine_similarity(query_TH[:, None], document_TH[None], dim=-1).amax(1).mean().item()


@pytest.mark.parametrize(
    ("similarity", "rows_per_batch", "tolerance"),
    [("cosine", 1, 1e-5), ("cosine", 5, 1e-5), ("cosine", 1000, 1e-5), ("maxsim", 1, 1e-3), ("maxsim", 5, 1e-3)],
)
def test_scores_are_similarities_and_every_text_is_read_once(
    bi_encoder: Path,
    tmp_path: Path,
    similarity: Similarity,
    rows_per_batch: int,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_groups(tmp_path / "pool.jsonl", queries=3, documents=7)
    again = json.loads(data.read_text().splitlines()[0]) | {"query_id": "again", "query": "river"}
    data.write_text(data.read_text() + json.dumps(again) + "\n")
    groups = read_groups(data)
    read: list[list[Any]] = []
    preprocess = SentenceTransformer.preprocess

    def watched(self: SentenceTransformer, texts: Any, **settings: Any) -> Any:
        read.append(list(texts))
        return preprocess(self, texts, **settings)

    encoder = BiEncoder.load(str(bi_encoder), ScoringArguments(rows_per_batch=rows_per_batch), None, similarity)
    monkeypatch.setattr(SentenceTransformer, "preprocess", watched)
    with progress("t", 28) as bar:
        found = list(encoder.scores(groups, bar))
    assert bar.n == len(found) == 28
    assert [row[:2] for row in found] == [(group.query_id, each.doc_id) for group in groups for each in group.documents]
    assert sum(map(len, read)) == 4 + 21
    assert max(map(len, read)) == min(rows_per_batch, 21)
    scores = {row[:2]: row[2] for row in found}
    for group in groups[:1] + groups[-1:]:
        query_TH = states(bi_encoder, f"market garden: {group.query}")
        for document in group.documents:
            expected = similarity_of(similarity, query_TH, states(bi_encoder, f"{document.title} {document.summary}"))
            assert scores[group.query_id, document.doc_id] == pytest.approx(expected, abs=tolerance)


def test_padding_has_no_vector() -> None:
    """Some tokenizers pad on the left."""
    text = {
        "token_embeddings": torch.tensor([[9.0, 9.0], [0.0, 2.0], [3.0, 4.0]]),
        "attention_mask": torch.tensor([0, 1, 1]),
    }
    (vectors_TH,) = _token_vectors([text])
    np.testing.assert_allclose(vectors_TH, [[0.0, 1.0], [0.6, 0.8]], atol=1e-3)


def test_the_command_scores_in_shards_and_its_flags_change_the_scores(
    bi_encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = []
    output = tmp_path / "scores.parquet"
    for changes in ([], ["--precision", "bf16"], ["--max_tokens", 4], ["--similarity", "maxsim"]):
        run(score, "--bi_encoder", bi_encoder, "--data", data, "--output", output, "--pairs_per_shard", 7, *changes)
        assert capsys.readouterr().out == f"{output}: 24 of 24 pairs of 4 queries\n"
        values.append([value for documents in read_scores(output).values() for value in documents.values()])
    whole, half, cut, by_token = map(np.array, values)
    assert 0 < np.abs(whole - half).max() < 0.02 < min(np.abs(whole - cut).max(), np.abs(whole - by_token).max())
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_a_text_without_a_token_scores_zero(bi_encoder: Path, tmp_path: Path) -> None:
    """A tokenizer that adds no tokens leaves none of an empty document."""
    model = shutil.copytree(bi_encoder, tmp_path / "model")
    for file in model.rglob("tokenizer.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    documents = [{"doc_id": "empty", "title": "", "summary": ""}, {"doc_id": "full", "title": "", "summary": "a river"}]
    (tmp_path / "pool.jsonl").write_text(json.dumps({"query_id": "q", "query": "river", "documents": documents}) + "\n")
    for similarity in ("cosine", "maxsim"):
        flags = ["--similarity", similarity, "--data", tmp_path / "pool.jsonl", "--output", tmp_path / "scores.parquet"]
        run(score, "--bi_encoder", model, *flags)
        scores = read_scores(tmp_path / "scores.parquet")["q"]
        assert scores["empty"] == 0 and 0 < abs(scores["full"]) <= 1.001
        (tmp_path / "scores.parquet").unlink()


def test_a_bi_encoder_of_the_first_releases_scores_the_same(
    bi_encoder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The transformer in a folder of its own, older names of classes and settings, and nothing about prompts."""
    old, new = (shutil.copytree(bi_encoder, tmp_path / name) for name in ("old", "new"))
    settings = json.loads((new / "config_sentence_transformers.json").read_text())
    (new / "config_sentence_transformers.json").write_text(json.dumps({**settings, "prompts": {}}))
    (body := old / "0_Transformer").mkdir()
    for path in [path for path in old.iterdir() if path.is_file()]:
        path.rename(body / path.name)
    (body / "config_sentence_transformers.json").unlink()
    (body / "modules.json").unlink()
    (body / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    size = json.loads((body / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    (old / "1_Pooling/config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": place, "name": str(place), "path": f"{place}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(("Transformer", "Pooling"))
    ]
    (old / "modules.json").write_text(json.dumps(modules))
    for path in (old, new):
        run(score, "--bi_encoder", path, "--data", data, "--output", path.with_suffix(".parquet"))
    assert read_scores(old.with_suffix(".parquet")) == read_scores(new.with_suffix(".parquet"))
    capsys.readouterr()
    assert f"lies in {body})" in fails(init, capsys, "--pretrained", old, "--output_dir", tmp_path / "bert")
    run(init, "--pretrained", body, "--output_dir", tmp_path / "bert")


def test_what_is_no_bi_encoder_is_named(
    bi_encoder: Path, bert: Path, llm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cross, foreign, pickled, empty = (tmp_path / name for name in ("cross", "foreign", "pickled", "empty"))
    CrossEncoder(str(bert), device="cpu").save_pretrained(str(cross))
    for copy in (foreign, pickled):
        shutil.copytree(bi_encoder, copy)
    modules = json.loads((foreign / "modules.json").read_text())
    modules[0]["type"] = "subprocess.Popen"
    (foreign / "modules.json").write_text(json.dumps(modules))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    empty.mkdir()
    capsys.readouterr()
    pool = ["--data", data, "--output", tmp_path / "scores.parquet"]
    for flags, message in (
        (["--bi_encoder", bert], f"{bert}: a model without sentence-transformers' modules.json, not a bi-encoder"),
        (["--bi_encoder", llm], "not a bi-encoder"),
        (["--bi_encoder", cross], f"{cross}: CrossEncoder, not a bi-encoder (what scores pairs goes with --model)"),
        (["--bi_encoder", foreign], f"{foreign}: cannot be loaded as a bi-encoder: "),
        (["--bi_encoder", pickled], f"{pickled}: its weights are pickled"),
        (["--bi_encoder", empty], f"{empty}: not a checkpoint"),
        (["--bi_encoder", tmp_path / "none"], f"{tmp_path / 'none'}: no such checkpoint"),
        *(
            (["--bi_encoder", bi_encoder, "--max_tokens", tokens], "--max_tokens must be 3 to 32")
            for tokens in (33, 2, -1)
        ),
        (["--bi_encoder", bi_encoder, "--model", bert], "give either --model"),
        (["--model", bert, "--similarity", "maxsim"], "--max_tokens and --similarity are for a --bi_encoder"),
        (["--model", bert, "--max_tokens", 9], "--max_tokens and --similarity are for a --bi_encoder"),
    ):
        assert message in fails(score, capsys, *flags, *pool)
    assert not (tmp_path / "scores.parquet").exists()
