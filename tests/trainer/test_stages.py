"""The training commands, on tiny models: what they leave, and what they say to bad input."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model_repository.tokenizer.pair_encoding import EncodingError, PairEncoder
from tests.support.stages import FEW, fails, run
from trainer import distill, evaluate, init, pretrain, rank_sft, score
from trainer.checkpoints.load import CheckpointError, load_scorer
from trainer.checkpoints.save import save_checkpoint
from trainer.data.rankings import read_scores, write_scores
from trainer.data.records import read_groups
from trainer.scoring.checkpoint import GroupScorer, PackedScoringArguments

CONFIG = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Every stage once, each on what the one before it left."""
    root = tmp_path_factory.mktemp("stages")
    decoder = {**CONFIG, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16}
    encoder = {**CONFIG, "model_type": "bert", "max_position_embeddings": 64}
    limits = ["--max_query_tokens", 16, "--max_pair_tokens", 64, "--row_length", 64, "--vocab_size", 400]
    for name, config in (("llm", decoder), ("bert", encoder)):
        (root / f"{name}.json").write_text(json.dumps(config))
        run(init, "--config", root / f"{name}.json", "--data", data, "--output_dir", root / name, *limits)
    run(pretrain, "--model", root / "llm", "--data", data, "--min_label", 1, "--output_dir", root / "cpt", *FEW)
    run(rank_sft, "--model", root / "cpt", "--data", data, "--output_dir", root / "teacher", *FEW)
    scores = root / "scores.parquet"
    run(score, "--model", root / "teacher", "--data", data, "--output", scores)
    run(distill, "--model", root / "bert", "--data", data, "--scores", scores, "--output_dir", root / "student", *FEW)
    return root


def test_each_stage_leaves_a_whole_checkpoint_and_nothing_else(stages: Path) -> None:
    assert not list(stages.glob(".*"))
    for name in ("llm", "cpt", "teacher", "bert", "student"):
        kept = {path.name for path in (stages / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "pair_encoding.json", "training.json"} <= kept
    curve = json.loads((stages / "student/training.json").read_text())["loss_curve"]
    assert [point["step"] for point in curve] == [1, 2, 3]
    events = EventAccumulator(str(stages / "student/logs")).Reload()
    for name in ("loss", "queries_compared"):
        points = [(point.step, point.value) for point in events.Scalars(f"train/{name}")]
        assert points == [(point["step"], pytest.approx(point[name])) for point in curve]


def test_training_moves_the_weights_and_the_teachers_scale_is_kept(stages: Path) -> None:
    before, after = load_scorer(stages / "bert"), load_scorer(stages / "student")
    assert any(
        not torch.equal(left, right) for left, right in zip(before.parameters(), after.parameters(), strict=True)
    )
    (statistics,) = json.loads((stages / "student/training.json").read_text())["teacher_scores"]
    values = pq.read_table(stages / "scores.parquet").column("score").to_numpy()
    assert statistics["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert statistics["standard_deviation"] == pytest.approx(values.std(), rel=1e-4)


def test_the_limit_of_a_request_limits_no_stage(stages: Path, tmp_path: Path) -> None:
    """Checkpoints are checked with more pairs than the server is then to take."""
    lengths = ["--max_query_tokens", 16, "--max_pair_tokens", 64, "--row_length", 64]
    run(init, "--pretrained", stages / "bert", "--max_documents", 2, "--output_dir", tmp_path / "small", *lengths)
    assert PairEncoder.load(tmp_path / "small").config.max_documents == 2


def test_a_run_file_gives_minus_log_rank(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = read_groups(data)[0]
    lines = [f"{group.query_id} Q0 {document.doc_id} {rank} 0 x\n" for rank, document in enumerate(group.documents)]
    (tmp_path / "llm.run").write_text("".join([*lines, "another Q0 d0 1 0 x\n"]))
    run(score, "--run", tmp_path / "llm.run", "--data", data, "--output", tmp_path / "s.parquet")
    scores = read_scores(tmp_path / "s.parquet")[group.query_id]
    assert "1 of its 2 queries are not in the data" in capsys.readouterr().err
    expected = -np.log(np.arange(1, len(group.documents) + 1))
    assert np.allclose([scores[document.doc_id] for document in group.documents], expected, atol=1e-6)


def test_what_the_first_run_leaves_out_comes_behind_it(tmp_path: Path, data: Path) -> None:
    rng = np.random.default_rng(0)
    group = read_groups(data)[0]
    doc_ids = [document.doc_id for document in group.documents]
    for taken in ((3, 5), (5, 3), (len(doc_ids), 1), (1, len(doc_ids))):
        runs = [rng.choice(doc_ids, number, replace=False).tolist() for number in taken]
        for name, order in zip("ab", runs, strict=True):
            lines = [f"{group.query_id} Q0 {doc_id} {rank} 0 x\n" for rank, doc_id in enumerate(order, start=1)]
            (tmp_path / f"{name}.run").write_text("".join(lines))
        output = tmp_path / "s.parquet"
        run(score, "--run", tmp_path / "a.run", tmp_path / "b.run", "--data", data, "--output", output)
        scores = read_scores(output)[group.query_id]
        best_first = sorted(scores, key=lambda doc_id: -scores[doc_id])
        assert best_first == runs[0] + [doc_id for doc_id in runs[1] if doc_id not in runs[0]]
        assert np.allclose([scores[doc_id] for doc_id in best_first], -np.log(np.arange(1, len(scores) + 1)), atol=1e-6)


def test_evaluate_compares_systems_and_writes_the_table(stages: Path, data: Path, tmp_path: Path) -> None:
    systems = ["random", "bm25", f"T={stages / 'teacher'}", f"S={stages / 'scores.parquet'}"]
    run(evaluate, "--data", data, "--systems", *systems, "--baseline", "T", "--output", tmp_path / "table.json")
    rows = {row["system"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == ["random", "bm25", "T", "S"]
    assert rows["T"]["ndcg@10"] == pytest.approx(rows["S"]["ndcg@10"])
    assert rows["S"]["ndcg@10_difference"] == pytest.approx(0)
    low, high = rows["bm25"]["ndcg@10_interval"]
    assert low <= rows["bm25"]["ndcg@10"] <= high
    assert rows["bm25"]["pnr"] > 0
    assert {name for name, row in rows.items() if row["documents_per_second"] is None} == {"S"}  # scored elsewhere


def test_the_speed_of_a_checkpoint_is_that_of_scoring_and_not_of_loading(
    stages: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which loading takes 1,000 seconds and scoring 2."""
    seconds = 0.0

    def taking(length: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            nonlocal seconds
            seconds += length
            return call(*arguments)

        return timed

    monkeypatch.setattr(PackedScoringArguments, "scorer", taking(1000, PackedScoringArguments.scorer))
    monkeypatch.setattr(GroupScorer, "score_all", taking(2, GroupScorer.score_all))
    monkeypatch.setattr(time, "perf_counter", lambda: seconds)
    run(evaluate, "--data", data, "--systems", stages / "student", "--output", tmp_path / "table.json")
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert row["documents_per_second"] == sum(len(group.documents) for group in read_groups(data)) / 2


def test_a_checkpoint_that_changed_on_the_way_to_disk_is_no_checkpoint(stages: Path, tmp_path: Path) -> None:
    model, encoder = load_scorer(stages / "student"), PairEncoder.load(stages / "student")

    class Losing:
        """A tokenizer whose file is not what the encoder uses."""

        def save_pretrained(self, directory: Path) -> None:
            shutil.copy(stages / "llm/tokenizer.json", directory)

    with pytest.raises((CheckpointError, EncodingError), match=r"has no token '\[CLS\]'|was not saved as it was used"):
        save_checkpoint(model, encoder, Losing(), tmp_path / "student", {})
    assert not (tmp_path / "student").exists()


def test_bad_input_gets_one_line_and_leaves_nothing(
    stages: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output_dir", tmp_path / "out", *FEW]
    shutil.copytree(stages / "llm", stages / "no-encoding", ignore=shutil.ignore_patterns("pair_encoding.json"))
    capsys.readouterr()
    pool = ["--data", data, "--output", tmp_path / "s.parquet"]
    cases: list[tuple[str, Any, list[object]]] = [
        ("no such checkpoint", rank_sft, ["--model", "/nowhere", "--data", data, *out]),
        ("no pair_encoding.json", rank_sft, ["--model", stages / "no-encoding", "--data", data, *out]),
        ("nowhere.jsonl: cannot be read", pretrain, ["--model", stages / "llm", "--data", "nowhere.jsonl", *out]),
        ("not a causal LM", pretrain, ["--model", stages / "teacher", "--data", data, "--min_label", 1, *out]),
        ("exists already", rank_sft, ["--model", stages / "llm", "--data", data, "--output_dir", stages / "cpt"]),
        ("either --model", score, pool),
        ("not a trained scorer", score, ["--model", stages / "cpt", *pool]),
        ("either --config", init, ["--output_dir", tmp_path / "out"]),
    ]
    for message, command, flags in cases:
        assert message in fails(command, capsys, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checkpoint", ["teacher", "student"])
def test_layers_in_bfloat16_give_scores_close_by_that_do_not_tie(
    stages: Path, data: Path, tmp_path: Path, checkpoint: str
) -> None:
    scores = []
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.parquet"
        flags = ["--model", stages / checkpoint, "--data", data, "--output", output, "--precision", precision]
        run(score, *flags)
        scores.append([value for documents in read_scores(output).values() for value in documents.values()])
    whole, half = map(np.array, scores)
    assert np.abs(whole - half).max() < 0.1 * whole.std() + 0.02
    assert not np.array_equal(whole, half)
    # Scored by evaluate in the same precision, the order is that of the file.
    systems = [f"here={stages / checkpoint}", f"file={tmp_path / 'bf16.parquet'}"]
    table = tmp_path / "table.json"
    run(evaluate, "--data", data, "--systems", *systems, "--precision", "bf16", "--output", table)
    here, file = json.loads(table.read_text())
    assert here["ndcg@10"] == pytest.approx(file["ndcg@10"])
    assert len(set(half)) > 0.9 * len(set(whole))


def test_scores_that_do_not_fit_are_named(
    stages: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = read_groups(data)[0]
    ids = [document.doc_id for document in query.documents]
    known = (query.query_id, ids[0], 2.0)
    flags = ["--model", stages / "bert", "--data", data, "--output_dir", tmp_path / "out", *FEW]
    path = tmp_path / "scores.parquet"
    for rows, message in (
        ([known, (query.query_id, "unheard-of", 1.0)], "row 2: document 'unheard-of' of query"),
        ([known, ("unheard-of", ids[0], 1.0)], "of query 'unheard-of' is not in the data (1 such rows)"),
        ([known, (query.query_id, ids[1], 1.0), known], f"row 3, query {query.query_id!r}, document {ids[0]!r}: "),
        ([(query.query_id, ids[0], float("inf"))], "the score is inf"),
        ([(query.query_id, doc_id, 1.0) for doc_id in ids], "teacher scores are equal"),
    ):
        write_scores(path, rows, teacher="t")
        assert message in fails(distill, capsys, "--scores", path, *flags)
    (tmp_path / "a.run").write_text(f"{query.query_id} Q0 unheard-of 1 9.0 x\n")
    message = fails(score, capsys, "--run", tmp_path / "a.run", "--data", data, "--output", tmp_path / "s.parquet")
    assert "document 'unheard-of'" in message
    assert {entry.name for entry in tmp_path.iterdir()} == {"scores.parquet", "a.run"}
