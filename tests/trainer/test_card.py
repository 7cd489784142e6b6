"""Model cards: their lines of code load and serve the checkpoint, and they say what is known."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

import build_engines
from client import rank
from model_repository.tokenizer.pair_encoding import Document, FloatArray, PairEncoder
from tests.support.checkpoints import (
    tiny_bert,
    tiny_llama,
    tiny_modernbert,
    tiny_roberta,
    tiny_xlm_roberta,
    write_groups,
    write_teacher,
)
from tests.support.servers import running
from tests.support.stages import FEW, fails, run
from trainer import card, distill, evaluate, init, merge, pretrain, rank_sft
from trainer.checkpoints.card import OWN
from trainer.checkpoints.load import PackedScorer, load_encoder, load_scorer
from trainer.checkpoints.save import save_checkpoint

PROMPT = ["<s>", "Q: {query}\n", "D: {document}", "</s>"]
WIDE = {"max_query_tokens": 24, "max_pair_tokens": 128, "row_length": 128}  # nothing is cut: others cut otherwise
MAKERS: dict[str, Any] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "xlm-roberta": tiny_xlm_roberta,
    "modernbert": tiny_modernbert,
    "llama": tiny_llama,
    "prompt": partial(tiny_llama, start_token=None, end_token=None, query_prefix="", document_prefix="", prompt=PROMPT),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def saved(made: Path, checkpoint: Path) -> Path:
    """The same model as a stage saves it."""
    save_checkpoint(load_scorer(made), *load_encoder(str(made)), checkpoint, {})
    return checkpoint


def ours(checkpoint: Path, query: str, documents: list[str]) -> FloatArray:
    encoder = PairEncoder.load(checkpoint)
    pairs = encoder.encode(query, [Document(title="", summary=text) for text in documents])
    return PackedScorer(load_scorer(checkpoint)).score(encoder.pack(pairs))


@pytest.mark.parametrize("family", MAKERS)
def test_the_lines_of_a_card_score_as_we_do(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(MAKERS[family](tmp_path / "made", **WIDE), tmp_path / "scorer")
    lines = blocks(checkpoint / "README.md", "python")
    assert len(lines) == (1 if family in ("llama", "prompt") else 2)
    with chdir(tmp_path):  # the card names the directory
        for code in lines:
            found: dict[str, Any] = {}
            exec(code, found)  # what a reader would paste
            documents = found.get("documents") or [found["document"]]
            scores = np.atleast_1d(np.asarray(found["scores" if "scores" in found else "score"]))
            np.testing.assert_allclose(scores, ours(checkpoint, found["query"], documents), atol=1e-5, rtol=0)


def test_the_lines_of_a_card_build_and_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(tiny_bert(tmp_path / "made"), tmp_path / "student")
    write_groups(tmp_path / "queries.jsonl", queries=8)
    document = {"doc_id": "d1", "title": "Affordable bicycle", "summary": "repair"}
    (tmp_path / "documents.jsonl").write_text(json.dumps(document) + "\n")
    (console,) = blocks(checkpoint / "README.md", "console")
    build, serve, ask = (shlex.split(line.removeprefix("$ ")) for line in console.splitlines())
    with chdir(tmp_path):
        assert build_engines.main([*build[2:], "--rows_per_call", "4"]) == 0
        assert serve == shlex.split("tritonserver --model-repository model_repository --model-config-name cpu")
        with running(tmp_path / "model_repository", tmp_path / "log") as server:
            capsys.readouterr()
            assert rank.main([*ask[2:], "--url", server.url, "--format", "jsonl"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    query = ask[ask.index("--query") + 1]
    assert line["score"] == pytest.approx(ours(checkpoint, query, ["Affordable bicycle repair"])[0], abs=1e-4)


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A teacher and a student, from first checkpoints on, with held-out queries, LoRA and an adapter."""
    root = tmp_path_factory.mktemp("way")
    scores = write_teacher(root / "scores.parquet", data)
    lora = ["--data", data, "--lora_rank", 2, *FEW]
    run(pretrain, "--model", llm(root / "llm"), "--output_dir", root / "cpt", *lora, "--min_label", 1)
    run(rank_sft, "--model", root / "cpt", "--output_dir", root / "adapter", *lora, "--lora_merge", "false")
    run(merge, "--adapter", root / "adapter", "--output_dir", root / "teacher")
    start = ["--model", tiny_bert(root / "bert"), "--data", data, "--scores", scores]
    judged = ["--held_out", write_groups(root / "dev.jsonl", seed=1, name="h"), "--save_steps", 1]
    run(distill, *start, *judged, "--output_dir", root / "student", *FEW)
    return root


def llm(directory: Path) -> Path:
    """A checkpoint of trainer.init, from one that stands for the hub's."""
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    path = directory.with_name("shape.json")
    path.write_text(json.dumps({**config, "num_attention_heads": 2, "num_key_value_heads": 2}))
    texts = write_groups(directory.with_name("texts.jsonl"), seed=2)
    limits = ["--max_query_tokens", 12, "--max_pair_tokens", 48, "--row_length", 64, "--vocab_size", 400]
    run(init, "--config", path, "--data", texts, "--output_dir", directory, *limits)
    return directory


def test_a_card_says_what_its_record_says(way: Path) -> None:
    student = (way / "student/README.md").read_text()
    assert "- **Teacher.** `t`, by its scores in `scores.parquet`, of mean " in student
    assert "- **Data.** `judged.jsonl`: 4 queries, 24 pairs" in student
    assert "- **Objective.** `1 pointwise_mse + 1 margin_mse`, a mean over queries" in student
    assert "- **Steps.** 3 of 2 queries, 1.5 epochs" in student
    points = [point["eval_nDCG@10"] for point in json.loads((way / "student/training.json").read_text())["held_out"]]
    best = points.index(max(points))
    assert f"of `dev.jsonl`, nDCG@10 was {max(points):.3f} after {best + 1} steps, the best of 3" in student
    teacher = (way / "teacher/README.md").read_text()
    assert "- **Base.** New weights in the shape of `shape.json`\n" in teacher
    later = "".join(f", then `{stage}` on `judged.jsonl`" for stage in ("pretrain", "rank_sft"))
    assert f"- **Stages.** `init` on `texts.jsonl`{later}, then `merge`\n" in teacher
    assert "- **LoRA.** Rank 2, alpha 32" in teacher
    assert "python -m trainer.merge --adapter adapter" in (way / "adapter/README.md").read_text()
    for name in ("llm", "cpt", "adapter", "teacher", "student"):
        page = (way / name / "README.md").read_text()
        assert not any(wrong in page for wrong in (str(way), "\n\n\n", "{{", "{%"))


def test_a_model_of_the_hub_is_the_base_of_all_that_comes_of_it(way: Path, tmp_path: Path) -> None:
    """By records as trainer.init leaves them; nothing here can be fetched."""
    first = tiny_bert(tmp_path / "first")
    (first / "training.json").write_text(json.dumps({"stage": "init", "arguments": {"pretrained": "acme/tiny"}}))
    second = tiny_bert(tmp_path / "second")
    (second / "training.json").write_text(json.dumps({"stage": "distill", "arguments": {"model": str(first)}}))
    for checkpoint in (first, second):
        run(card, "--model", checkpoint)
        assert ModelCard.load(checkpoint / "README.md").data.base_model == "acme/tiny"
    for broken in ("{", "[1]", '{"arguments": 1}'):  # of the start, which must not cost the result
        (first / "training.json").write_text(broken)
        (second / "README.md").unlink()
        run(card, "--model", second)
        assert ModelCard.load(second / "README.md").data.base_model is None


def test_measures_come_into_the_card_and_additions_by_hand_stay(
    way: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, table = way / "student", tmp_path / "table.json"
    run(evaluate, "--data", data, "--systems", "random", f"S={student}", "--output", table)
    row = json.loads(table.read_text())[1]
    page = student / "README.md"
    page.write_text(page.read_text().replace("tags:", "language: en\ntags:\n- news", 1) + "\n## Our notes\n\nOf May.\n")
    for _ in range(2):  # the same evaluation again replaces the first
        run(card, "--model", student, "--results", table, "--license", "apache-2.0")
    run(card, "--model", student)
    capsys.readouterr()
    text, (low, high) = page.read_text(), row["ndcg@10_interval"]
    assert text.count(f"| `judged.jsonl` | 4 | ndcg@10 | {row['ndcg@10']:.3f} [{low:.3f}, {high:.3f}] |") == 1
    assert text.partition(OWN)[2] == "\n\n## Our notes\n\nOf May.\n"
    written = ModelCard.load(page).data
    assert (written.license, written.language) == ("apache-2.0", "en")
    assert "\n## Licence\n\napache-2.0\n" in text
    assert written.tags == ["disranker", "cross-encoder", "reranker", "news"]
    (ndcg,) = (each for each in written.eval_results or [] if each.metric_type == "ndcg@10")
    assert (ndcg.dataset_name, ndcg.metric_value) == ("judged.jsonl", round(row["ndcg@10"], 4))

    flags = ["--model", student, "--results", table]
    assert "0 of its systems are T: name one by --system: ['random', 'S']" in fails(
        card, capsys, *flags, "--system", "T"
    )
    table.write_text("[1]")
    assert "table.json: not a table of trainer.evaluate" in fails(card, capsys, *flags)
    page.write_text("---\nlicense: [\n---\n")
    assert "README.md: the card's metadata cannot be read" in fails(card, capsys, "--model", student)
    assert "no such checkpoint" in fails(card, capsys, "--model", tmp_path / "nowhere")
