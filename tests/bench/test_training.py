"""The bench of training: every system that is installed here learns the same, and what is reported of it is right."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.environments import BenchError
from bench.report import Spread, bf16_units, machine, ratios, write
from bench.training import growth, losses, material
from bench.training.__main__ import main
from bench.training.job import Group, Job, Outcome, Shape
from bench.training.rounds import Measured, System, Task, compare, largest_difference, run
from bench.training.table import TOLERANCE, rows, table
from bench.training.tasks import OURS, WORKERS, Load, divided, pretraining_task, rank_task, student_task
from bench.training.workers import cross_encoder, flat, ours
from bench.training.workers.clock import Clock, settings
from bench.training.workers.decoder_pairs import pairs_of
from model_repository.tokenizer.pair_encoding import Document
from tests.support.checkpoints import late_interaction_of, tiny_bert, tiny_llama, tiny_modernbert, write_groups
from trainer.checkpoints.load import CheckpointError, load_encoder
from trainer.data.records import DataError


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Without dropout, with room for pairs of one or two words."""
    root = tmp_path_factory.mktemp("bert")
    made = tiny_bert(root / "drops", max_pair_tokens=128, row_length=128, max_query_tokens=12)
    model = AutoModelForSequenceClassification.from_pretrained(made)
    for name in material.DROPOUT[:2]:
        setattr(model.config, name, 0.0)
    model.save_pretrained(made)
    return str(made)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("llama") / "scorer"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Group]:
    data = write_groups(tmp_path_factory.mktemp("groups") / "data.jsonl", queries=6, documents=8)
    return material.read_lists([str(data)], 4, seed=0)


@pytest.fixture(scope="module")
def job(bert: str, groups: list[Group]) -> Job:
    return Job(bert, tuple(groups), Shape(2, 2), steps=3, learning_rate=1e-3)


@pytest.fixture(scope="module")
def whole(job: Job) -> Outcome:
    """Ours on all of the job."""
    return ours.distil(job)


@pytest.mark.parametrize("peer", [flat.measure, cross_encoder.measure])
def test_ours_and_the_peers_have_one_loss_curve(job: Job, whole: Outcome, peer: Callable[[Job], Outcome]) -> None:
    other = peer(job)
    assert len(whole.losses) == job.warm_up + job.steps
    assert len({round(loss, 3) for loss in whole.losses}) > 1
    assert largest_difference(whole.losses, other.losses) < 1e-4  # float32 in another order of sums
    assert whole.pairs == other.pairs == 3 * 2 * 4


@pytest.mark.parametrize("peer", [flat.measure, cross_encoder.measure])
def test_a_modernbert_has_one_loss_curve_too(
    peer: Callable[[Job], Outcome], job: Job, tmp_path: Path, groups: list[Group]
) -> None:
    """Its pairs are longer than its window."""
    scorer = tiny_modernbert(tmp_path / "scorer", max_pair_tokens=128, row_length=128, max_query_tokens=12)
    windowed = replace(job, checkpoint=str(scorer), steps=2)
    assert largest_difference(ours.distil(windowed).losses, peer(windowed).losses) < 1e-4


def test_a_student_of_a_shape_is_drawn_with_the_vocabulary_of_the_shape(tmp_path: Path) -> None:
    data = write_groups(tmp_path / "data.jsonl")
    shape = {"model_type": "modernbert", "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64}
    path = tmp_path / "shape.json"
    path.write_text(json.dumps({**shape, "num_hidden_layers": 1, "num_attention_heads": 2}))
    made = material.drawn(path, [str(data)], tmp_path / "drawn")
    scorer = material.student(made, tmp_path / "student", max_pair_tokens=96, row_length=96)
    config = AutoConfig.from_pretrained(scorer)
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("modernbert", 500, 32)
    assert len(load_encoder(scorer)[1]) < 500


@pytest.mark.parametrize("text", [None, "{", '{"vocab_size": 500}', '{"model_type": "never-heard-of"}'])
def test_what_is_no_shape_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "shape.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        material.drawn(path, [], tmp_path / "drawn")


def test_bf16_has_the_same_losses_but_for_its_rounding(job: Job) -> None:
    short = replace(job, precision="bf16", steps=1, warm_up=0)
    one, other, exact = ours.distil(short), flat.measure(short), ours.distil(replace(short, precision="fp32"))
    assert len(one.losses) == len(one.step_seconds) == 1
    assert one.losses != exact.losses
    assert largest_difference(one.losses, other.losses) < TOLERANCE["bf16"]


def test_the_shape_of_a_step_changes_no_loss(job: Job, whole: Outcome) -> None:
    parts = ours.distil(replace(job, shape=Shape(1, 2)))
    assert largest_difference(parts.losses, whole.losses) < 1e-4


def test_what_a_worker_measures(job: Job, whole: Outcome) -> None:
    assert len(whole.step_seconds) == job.steps
    assert whole.pairs_per_second == pytest.approx(whole.pairs / whole.seconds)
    assert 2**26 < whole.peak_bytes < 2**36
    assert whole.versions["torch"] == torch.__version__


def test_the_first_document_is_compared_with_each_of_the_others() -> None:
    scores, targets = torch.tensor([1.0, 0.0, 3.0, 2.0, 2.5]), torch.tensor([0.0, 0.5, 0.0, 1.0, 0.5])
    # Query 0: (1 - -0.5)^2, (-2 - 0)^2; query 1: (-0.5 - 0.5)^2.
    loss = ours.first_margin_mse(scores, targets, torch.tensor([0, 0, 0, 1, 1]))
    assert loss.losses.item() == pytest.approx((2.25 + 4.0 + 1.0) / 3)


PROMPT = {
    "start_token": None,
    "end_token": None,
    "query_prefix": "",
    "document_prefix": "",
    "prompt": ["<s>", "Question: {query}\n", "Text: {document}", "</s>"],
}


@pytest.mark.parametrize("template", [{}, {"max_query_tokens": 4}, PROMPT, {**PROMPT, "max_query_tokens": 4}])
def test_the_decoders_workers_train_what_the_peers_read(
    template: dict[str, Any], groups: list[Group], tmp_path: Path
) -> None:
    """With queries that are cut, too."""
    llama = str(tiny_llama(tmp_path / "scorer", **template))
    encoder, tokenizer = load_encoder(llama)
    for group in groups:
        theirs = list(pairs_of(group, tokenizer, llama))
        documents = [Document(title="", summary=text) for text in group.documents]
        for pair, expected in zip(theirs, encoder.encode(group.query, documents), strict=True):
            assert pair.token_ids == expected.token_ids.tolist()
            assert pair.document_start == expected.document_start


def test_continued_pre_training_and_rank_fine_tuning_are_measured(
    llama: str, groups: list[Group], tmp_path: Path
) -> None:
    job = Job(llama, material.graded(groups), Shape(2, 2), steps=2)
    ranked = ours.rank(job)
    assert ranked.comparisons == 2 * 2 * 6  # four documents, a grade each
    assert all(math.isfinite(loss) for loss in ranked.losses)
    encoder, tokenizer = load_encoder(llama)  # of a causal LM of the scorer's shape
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder.config.save(tmp_path / "pair_encoding.json")
    assert len(ours.pretrain(replace(job, checkpoint=str(tmp_path))).losses) == 3


def test_rounds_ratios_and_spread_by_hand() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert ratios([2.0, 6.0, 3.0], [1.0, 2.0, 2.0]) == Spread(2.0, 1.5, 3.0)
    assert largest_difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="longer"):
        largest_difference([1.0], [1.0, 2.0])


def test_a_clock_counts_from_the_end_of_the_warm_up() -> None:
    clock = Clock()
    clock.ends = [0.0, 10.0, 11.0, 13.0]
    assert clock.step_seconds(warm_up=1) == [1.0, 2.0]
    assert clock.step_seconds(warm_up=0) == [10.0, 1.0, 2.0]


def outcome(pairs: float, peak: int = 2**30, losses: tuple[float, ...] = (1.0, 2.0)) -> Outcome:
    return Outcome([1.0, 1.0], pairs * 2, 0, list(losses), peak, {})


def test_a_row_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    systems = [System(name, OURS, (), (Shape(1, 1),)) for name in ("ours", "peer")]
    fast = Measured(systems[0], Shape(2, 4), {}, [outcome(6), outcome(8)], [1.0, 2.0])
    slow = Measured(
        systems[1],
        Shape(4, 4),
        {"1 of 4": 3.21, "4 of 4": 4.0},
        [outcome(3, 2**31), outcome(5, 2**31)],
        [1.0, 2.0 + 1e-4],
    )
    first, second = rows("distillation", "fp32", [fast, slow])
    assert first.ratio is None
    assert second.ratio == Spread(1.8, 1.6, 2.0)
    assert second.memory_ratio == 0.5
    assert second.same_loss
    far = replace(slow, losses=[1.0, 2.0 + 4e-3])
    assert [rows("", precision, [fast, far])[1].same_loss for precision in ("fp32", "bf16")] == [False, True]
    Console(width=240).print(table([first, second], "title"))
    printed = capsys.readouterr().out
    assert "1.80x [1.60, 2.00]" in printed
    assert "0.50x" in printed
    assert "1 of 4: 3.2; 4 of 4: 4.0" in printed
    write(tmp_path / "training.json", {"rows": [first, second], "machine": machine(2)})
    written = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert written[0]["pairs_per_second"] == {"median": 7.0, "low": 6.0, "high": 8.0}
    assert [row["same_loss"] for row in written] == [None, True]


def test_systems_are_compared_at_their_fastest_shapes_in_rounds(job: Job) -> None:
    worker, shapes, done = ("tests.support.bench_worker",), (Shape(1, 2), Shape(2, 2)), list[int]()
    systems = [System("ours", OURS, worker, shapes, shapes[0]), System("peer", OURS, worker, shapes[:1], shapes[0])]
    task = Task("none", job, tuple(systems), rounds=2, check=replace(job, steps=1))
    one, other = compare(task, threads=1, progress=lambda: done.append(1))
    assert len(done) == task.measurements() == 2 + 2 * 2 + 2
    assert len(one.losses) == 1 < len(one.rounds[0].losses)
    assert one.trials == {"1 of 2": 2.0, "2 of 2": 4.0}
    assert (one.shape, other.shape) == (shapes[1], shapes[0])
    assert (one.pairs_per_second, other.pairs_per_second) == ([4.0, 4.0], [2.0, 2.0])


def test_a_system_trains_in_a_process_of_its_own_as_it_does_here(job: Job, whole: Outcome) -> None:
    system = System("ours", OURS, (f"{WORKERS}.ours", "distil"), ())
    outcome = run(system, replace(job, steps=1), threads=1)
    assert outcome.losses == pytest.approx(whole.losses[:2], rel=1e-4)  # other threads, another order of sums


def test_a_worker_that_fails_is_named_with_its_last_words(job: Job) -> None:
    system = System("padded", OURS, ("tests.support.bench_worker",), ())
    with pytest.raises(BenchError, match=r"padded \(fp32, 2 of 3\): ValueError: 2 a forward pass do not divide"):
        run(system, replace(job, shape=Shape(2, 3)), threads=1)
    with pytest.raises(ValueError, match="2 a forward pass do not divide a step of 3"):
        settings(replace(job, shape=Shape(2, 3)))


def test_lists_have_the_asked_number_of_documents_and_grades(tmp_path: Path) -> None:
    data = str(write_groups(tmp_path / "data.jsonl", queries=2, documents=11))
    made = material.read_lists([data], 4, seed=1)
    assert [len(group.documents) for group in made] == [4] * 4
    assert made == material.read_lists([data], 4, seed=1)
    assert made != material.read_lists([data], 4, seed=2)
    for group in material.graded(made):
        assert sorted(group.targets) == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(DataError, match="no query has 16 documents"):
        material.read_lists([data], 16, seed=0)


def test_growth_makes_pairs_of_the_asked_mean_length(bert: str) -> None:
    encoder, _ = load_encoder(bert)
    words = material.single_token_words(bert)
    for mean, spread in ((32, True), (64, True), (128, False)):
        made = growth.groups_of_length(words, mean, 4, 100, 128, random.Random(0))
        found = material.lengths(made, encoder)
        assert found.mean == pytest.approx(mean, rel=0.05)
        assert found.longest <= 128
        assert (found.padded > 1.1) == spread


def test_tasks_take_as_much_data_as_their_steps(bert: str, llama: str, groups: list[Group]) -> None:
    load = Load(groups, queries=4, steps=2, rounds=3)
    task = student_task(bert, load, "fp32", OURS, None)
    assert [system.name for system in task.systems] == ["ours", "sentence-transformers"]
    assert len(task.job.groups) == 4 * (1 + 2 + 1)
    reduced = student_task(bert, load, "bf16", None, OURS).job
    assert (reduced.steps, reduced.shape.per_step) == ((2, 4) if bf16_units() else (1, 1))
    pairs = material.lengths(groups, load_encoder(llama)[0])
    for each in (pretraining_task(llama, load, pairs, OURS), rank_task(llama, load, OURS)):
        for system in each.systems:
            assert all(shape.per_step % shape.per_forward == 0 for shape in system.shapes)
    assert {weight for group in pretraining_task(llama, load, pairs, OURS).job.groups for weight in group.targets} == {
        1
    }
    assert [shape.per_forward for shape in divided(12)] == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize("peer", ["sentence-transformers", "transformers"])
def test_a_student_that_no_peer_computes_is_compared_with_none(
    peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student, data = late_interaction_of(tiny_bert, tmp_path / "student"), write_groups(tmp_path / "data.jsonl")
    monkeypatch.setattr(material, "student", lambda *_: str(student))  # or a process of its own would copy it
    flags = ["--data", data, "--documents", 2, "--parts", "student", "--peers", peer, "--work_dir", tmp_path / "work"]
    assert main([*map(str, flags)]) == 2
    assert f"{student}: it scores by late interaction, which no peer computes" in capsys.readouterr().err


def test_growth_is_measured_and_drawn(bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SHAPES", [(32, 16), (64, 16), (32, 2)])
    system = System("ours", OURS, ("tests.support.bench_worker",), ())
    points = growth.measure(system, bert, steps=2, threads=1, progress=lambda: None)
    assert [point.mean_tokens for point in points] == pytest.approx([32, 64, 32], rel=0.05)
    for point, queries in zip(points, (8, 4, 64), strict=True):  # a step of which takes this worker 1 / queries seconds
        pairs = queries * point.documents
        assert point.pairs_per_second.median == pytest.approx(pairs * queries)
        assert point.tokens_per_second.median == pytest.approx(pairs * queries * point.mean_tokens, rel=0.05)
    growth.draw(points, tmp_path / "plot.png", "a title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bad_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "nobody"]) == 2
    assert "--peers nobody: not one of sentence-transformers" in capsys.readouterr().err
    assert main(["--documents", "1"]) == 2


def test_losses_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert losses.main(["--documents", "1000", "2000"]) == 0
    table = capsys.readouterr().out
    assert table.count("MiB") == 2 * len(losses.OBJECTIVES)
    assert "2,000 documents" in table
