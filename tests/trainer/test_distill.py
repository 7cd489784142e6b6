"""The targets of distillation, and its losses, on tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import tiny_bert, tiny_llama
from tests.support.rerankers import tiny_late
from tests.support.stages import FEW, LEARNING, fails, learnt, run
from trainer import distill, score
from trainer.checkpoints.load import load_scorer
from trainer.data.rankings import ScoreTable, write_scores
from trainer.data.records import JudgedDocument, QueryGroup, read_groups

Scorer = Callable[[int, int], float]  # of query and document, by number


def teacher(path: Path, groups: list[QueryGroup], score: Scorer, without: str = "") -> Path:
    rows = [
        (group.query_id, document.doc_id, score(number, place))
        for number, group in enumerate(groups)
        for place, document in enumerate(group.documents)
        if document.doc_id != without
    ]
    write_scores(path, rows, teacher=path.stem)
    return path


def words(document: JudgedDocument) -> float:
    return float(len(f"{document.title} {document.summary}".split()))


def test_standardised_scores_have_mean_0_and_deviation_1(data: Path, tmp_path: Path) -> None:
    groups = read_groups(data)
    path = teacher(tmp_path / "t.parquet", groups, lambda _, place: 0.1 * place)
    teach = distill.TeacherTargets([distill.read_teacher(str(path))])
    taught = [chosen for group in groups if (chosen := teach(group))]
    targets = np.concatenate([group.targets for group in taught])
    assert targets.mean() == pytest.approx(0, abs=1e-6)
    assert targets.std() == pytest.approx(1)
    labels = [label for group in taught for label in group.labels]
    known = [document.label for group in groups for document in group.documents]
    assert all(
        math.isnan(ours) if theirs is None else ours == theirs for ours, theirs in zip(labels, known, strict=True)
    )


def test_teachers_of_different_scales_count_alike(data: Path, tmp_path: Path) -> None:
    groups = read_groups(data)
    up = teacher(tmp_path / "up.parquet", groups, lambda _, place: 100.0 * place)
    down = teacher(tmp_path / "down.parquet", groups, lambda _, place: -0.01 * place)
    teach = distill.TeacherTargets([distill.read_teacher(str(path)) for path in (up, down)])
    taught = [chosen for group in groups if (chosen := teach(group))]
    assert np.allclose([target for group in taught for target in group.targets], 0, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--objective", "ranknet", "--discount", "true", "--mean_over", "pairs"],
        ["--objective", "adr_mse"],
        ["--objective", "list_mle"],
        ["--objective", "kl", "--temperature", "2"],
        ["--pointwise_weight", "0"],
        ["--margin_weight", "0", "--label_weight", "0.5"],
        ["--documents_per_query", "3", "--student_layers", "2"],
    ],
)
def test_every_way_to_distil_learns(deep_bert: Path, data: Path, tmp_path: Path, flags: list[str]) -> None:
    """The student is taught that longer documents are better, and finds that out."""
    groups = read_groups(data)
    longer = teacher(tmp_path / "t.parquet", groups, lambda query, place: words(groups[query].documents[place]))
    source = ["--model", deep_bert, "--data", data, "--scores", longer]
    run(distill, *source, "--output_dir", tmp_path / "student", *LEARNING, *flags)
    assert learnt(tmp_path / "student")
    layers = 2 if "--student_layers" in flags else 4
    assert load_scorer(tmp_path / "student").config.num_hidden_layers == layers


def test_bad_choices_are_refused(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = read_groups(data)
    some = teacher(tmp_path / "some.parquet", groups, lambda _, place: float(place), without="d1")
    taught = ["--model", deep_bert, "--data", data, "--scores", some, "--output_dir", tmp_path / "out", *FEW]
    missing = f"{len(groups)} pairs have no teacher score, the first is document 'd1' of query 'q0'"
    assert missing in fails(distill, capsys, *taught)
    assert "--temperature must be above 0" in fails(distill, capsys, *taught, "--temperature", 0)
    assert "--label_weight must be at least 0" in fails(distill, capsys, *taught, "--label_weight", 1.5)
    weights = ["--pointwise_weight", 0, "--margin_weight", 0]
    assert "nor both 0" in fails(distill, capsys, *taught, *weights)
    assert "at least 2, not 1" in fails(distill, capsys, *taught, "--documents_per_query", 1)
    whole = teacher(tmp_path / "whole.parquet", groups, lambda _, place: float(place))
    assert "cannot keep 9 layers" in fails(distill, capsys, *taught, "--scores", whole, "--student_layers", 9)
    assert {path.name for path in tmp_path.iterdir()} == {"some.parquet", "whole.parquet"}


def test_scores_that_teach_nothing_are_refused(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One score of 1e30 among the others; queries of one document, which no margin compares."""
    groups = read_groups(data)
    far = teacher(tmp_path / "far.parquet", groups, lambda query, place: 1e30 if query == place == 0 else place)
    flags = ["--model", deep_bert, "--output_dir", tmp_path / "out", *FEW]
    assert "one score, 1e+30, is so far from the others" in fails(
        distill, capsys, *flags, "--data", data, "--scores", far
    )
    single = tmp_path / "single.jsonl"
    lines = map(json.loads, data.read_text().splitlines())
    single.write_text("".join(json.dumps({**line, "documents": line["documents"][:1]}) + "\n" for line in lines))
    alone = teacher(tmp_path / "alone.parquet", read_groups(single), lambda query, _: float(query))
    flat = [*flags, "--data", single, "--scores", alone]
    for compared in ([], ["--objective", "ranknet"], ["--margin_weight", 0, "--label_weight", 0.5]):
        assert "every query has one document" in fails(distill, capsys, *flat, *compared)
    assert not (tmp_path / ".out.run").exists()  # before it trains
    run(distill, *flat, "--margin_weight", 0)  # the points alone can be learnt
    level = teacher(tmp_path / "level.parquet", groups, lambda query, _: float(query))
    same = ["--data", data, "--scores", level, "--objective", "ranknet", "--output_dir", tmp_path / "level"]
    assert "found no documents to compare in any query" in fails(distill, capsys, *flags, *same)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("make", [tiny_bert, tiny_late, tiny_llama])
def test_a_head_is_fitted_to_the_margins_of_its_teacher(
    make: Callable[[Path], Path], scale: float, data: Path, tmp_path: Path
) -> None:
    """The teacher has the student's own order on another scale, and each query has its own mean."""
    student, margins = make(tmp_path / "student"), []
    draw, shifts = np.random.default_rng(0), dict[int, float]()
    run(score, "--model", student, "--data", data, "--output", tmp_path / "own.parquet")
    own, groups = ScoreTable(tmp_path / "own.parquet"), read_groups(data)
    taught = teacher(
        tmp_path / "t.parquet",
        groups,
        lambda query, place: scale * own.get(f"q{query}", f"d{place}") + shifts.setdefault(query, draw.normal()),
    )
    flags = ["--model", student, "--data", data, "--scores", taught, "--standardise", "false", "--fit_head", "true"]
    run(distill, *flags, "--learning_rate", 0, "--output_dir", tmp_path / "out", *FEW)
    run(score, "--model", tmp_path / "out", "--data", data, "--output", tmp_path / "fitted.parquet")
    for table in (ScoreTable(tmp_path / name) for name in ("t.parquet", "fitted.parquet")):
        scores = [[table.get(group.query_id, one.doc_id) for one in group.documents] for group in groups]
        margins.append(np.concatenate([np.array(query) - np.mean(query) for query in scores]))
    np.testing.assert_allclose(margins[1], margins[0], rtol=1e-4, atol=1e-5 * scale)
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert record["head_factor"] == pytest.approx(scale, rel=1e-4)
    assert f"multiplied by {record['head_factor']:.3g}" in (tmp_path / "out/README.md").read_text()
    if make is not tiny_llama:  # whose head has no bias
        means = [ScoreTable(tmp_path / name).scores.mean() for name in ("t.parquet", "fitted.parquet")]
        assert means[1] == pytest.approx(means[0], abs=1e-4 * max(1, scale))


def test_a_head_that_ranks_against_its_teacher_is_not_fitted(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(score, "--model", bert, "--data", data, "--output", tmp_path / "own.parquet")
    own = ScoreTable(tmp_path / "own.parquet")
    against = teacher(
        tmp_path / "t.parquet", read_groups(data), lambda query, place: -own.get(f"q{query}", f"d{place}")
    )
    flags = ["--model", bert, "--data", data, "--scores", against, "--output_dir", tmp_path / "out", *FEW]
    capsys.readouterr()
    assert "the student has no margins that rise with the teacher's (slope -" in fails(
        distill, capsys, *flags, "--fit_head", "true"
    )
    assert not (tmp_path / "out").exists()


def test_some_queries_of_one_document_are_counted_and_their_points_learnt(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Margins of such a query are none, and its loss is a number."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for line in lines[1:]:
        line["documents"] = line["documents"][:1]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = teacher(tmp_path / "s.parquet", read_groups(mixed), lambda query, place: 3.0 * query + place)
    out = ["--output_dir", tmp_path / "out", *FEW[:2], "--per_device_train_batch_size", 1, *FEW[4:]]
    run(distill, "--model", deep_bert, "--data", mixed, "--scores", scores, *out, "--shuffle_buffer", 1)
    assert "3 of 4 queries have one document, which is compared with no other" in capsys.readouterr().err
    curve = json.loads((tmp_path / "out/training.json").read_text())["loss_curve"]
    assert all(0 < point["loss"] < math.inf for point in curve)


def test_raw_scores_are_taken_as_they_are(
    deep_bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = read_groups(data)
    logits = teacher(tmp_path / "t.parquet", groups, lambda query, place: 20.0 * place - 50)
    teach = distill.TeacherTargets([distill.read_teacher(str(logits), standardise=False)])
    assert [chosen.targets for group in groups if (chosen := teach(group))] == [
        tuple(20.0 * place - 50 for place in range(len(group.documents))) for group in groups
    ]
    assert not capsys.readouterr().err
    distill.read_teacher(str(teacher(tmp_path / "p.parquet", groups, lambda _, place: place / 9)), standardise=False)
    assert "p.parquet: the scores deviate by 0.19 only" in capsys.readouterr().err
