"""Model cards: their lines of code load and serve the checkpoint, and they say what is known."""

from __future__ import annotations

import json
import re
import shlex
import shutil
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
    late_interaction_of,
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

DATASET = "ir_datasets:msmarco-passage/trec-dl-2020/judged"
PROMPT = ["<s>", "Q: {query}\n", "D: {document}", "</s>"]
WIDE = {"max_query_tokens": 24, "max_pair_tokens": 128, "row_length": 128}  # nothing is cut: others cut otherwise
MAKERS: dict[str, Any] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "xlm-roberta": tiny_xlm_roberta,
    "modernbert": tiny_modernbert,
    "bert by late interaction": partial(late_interaction_of, tiny_bert),
    "roberta by late interaction": partial(late_interaction_of, tiny_roberta),
    "modernbert by late interaction": partial(late_interaction_of, tiny_modernbert),
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
    elsewhere = family in ("bert", "roberta", "xlm-roberta", "modernbert")  # in sentence-transformers too
    assert len(lines) == (2 if elsewhere else 1)
    metadata = ModelCard.load(checkpoint / "README.md").data
    assert metadata.library_name == ("sentence-transformers" if elsewhere else "transformers")
    assert ("cross-encoder" in metadata.tags) == elsewhere
    with chdir(tmp_path):  # the card names the directory
        for code in lines:
            found: dict[str, Any] = {}
            exec(code, found)  # what a reader would paste
            documents = found.get("documents") or [found["document"]]
            scores = np.atleast_1d(np.asarray(found["scores" if "scores" in found else "score"]))
            np.testing.assert_allclose(scores, ours(checkpoint, found["query"], documents), atol=1e-5, rtol=0)


def test_the_lines_of_a_card_build_and_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = saved(tiny_bert(tmp_path / "made", layers=1), tmp_path / "student")
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
    (first / "training.json").write_text("{")  # the start's, which must not cost the result
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
    assert "0 of its systems are T; name one of ['random', 'S'] by --system" in fails(
        card, capsys, *flags, "--system", "T"
    )
    before = page.read_text(), (student / "training.json").read_text()
    for part, value in (
        ("queries", "4"), ("data", "judged.jsonl"), ("data", [1]), ("qrels", [1]), ("candidates", 1), ("depth", "2"),
        ("ndcg@10", "high"), ("ndcg@10_interval", [1]), ("pnr_interval", ["low", "high"]),
    ):  # fmt: skip
        table.write_text(json.dumps([{**row, part: value}]))
        named = fails(card, capsys, *flags)
        assert "table.json: not a table of trainer.evaluate" in named and f"{part} of S" in named
    table.write_text("[1]")
    assert "table.json: not a table of trainer.evaluate" in fails(card, capsys, *flags)
    assert (page.read_text(), (student / "training.json").read_text()) == before
    page.write_text("---\nlicense: [\n---\n")
    assert "README.md: the card's metadata cannot be read" in fails(card, capsys, "--model", student)
    assert "no such checkpoint" in fails(card, capsys, "--model", tmp_path / "nowhere")


def test_evaluations_on_different_files_of_one_name_stand_beside_each_other(data: Path, tmp_path: Path) -> None:
    student, qrels, table = tiny_bert(tmp_path / "student"), tmp_path / "other.qrels", tmp_path / "table.json"
    groups = [json.loads(line) for line in data.read_text().splitlines()]
    qrels.write_text("".join(f"{each['query_id']} 0 {each['documents'][0]['doc_id']} 1\n" for each in groups))
    add = ["--model", student, "--results", table, "--system", "random"]
    for folder, more in (("a", []), ("b", []), ("b", ["--qrels", qrels]), ("b", [])):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(data, tmp_path / folder / "judged.jsonl")
        run(evaluate, "--data", tmp_path / folder / "judged.jsonl", "--systems", "random", *more, "--output", table)
        run(card, *add)
    (row,) = json.loads(table.read_text())
    table.write_text(json.dumps([{**row, "data": [DATASET]}]))
    run(card, *add)
    names = ["a/judged.jsonl", "b/judged.jsonl", "judged.jsonl, qrels other.qrels", DATASET]
    results = ModelCard.load(student / "README.md").data.eval_results or []
    assert [each.dataset_name for each in results if each.metric_type == "ndcg@10"] == names


def test_a_card_leaves_out_what_no_checkpoint_was_chosen_by(tmp_path: Path) -> None:
    student = tiny_bert(tmp_path / "student")
    points = [{"step": step, "eval_nDCG@10": value} for step, value in enumerate((0.9, 0.5, 0.7))]
    arguments = {"measure": "nDCG@10", "held_out": ["dev.jsonl"], "student_layers": 2}
    (student / "training.json").write_text(json.dumps({"arguments": arguments, "held_out": points}))
    run(card, "--model", student)
    page = (student / "README.md").read_text()
    assert "nDCG@10 was 0.700 after 2 steps, the best of 2 evaluations" in page
    assert "- **Layers.** 2 of the base's\n" in page


@pytest.mark.parametrize("head", ["", "---\nlicense: mit\n---\n"])
def test_a_page_by_hand_is_not_replaced(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = tiny_bert(tmp_path / "student")
    page = student / "README.md"
    page.write_text(f"{head}# Ours\n")
    assert "README.md: not a card of ours; move it away" in fails(card, capsys, "--model", student)
    assert page.read_text() == f"{head}# Ours\n"
    page.write_text(f"{head}\n{OWN}\n# Ours\n")
    run(card, "--model", student)
    assert page.read_text().endswith(f"{OWN}\n# Ours\n")
