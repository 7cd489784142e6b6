"""Studies: cells of real commands, which share steps, go on where they were stopped and are reported as they ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.quality import __main__ as quality
from bench.quality.cells import Planner
from bench.quality.leaks import leak
from bench.quality.sources import Asked, Sources
from bench.quality.study import read_study
from examples import collection
from tests import ROOT
from tests.support.checkpoints import tiny_bert, write_candidates, write_groups
from tests.support.stages import SERVER
from tests.support.waiting import eventually
from trainer import evaluate
from trainer.data.records import read_groups
from trainer.data.resemblance import RESEMBLANCE, trigrams

STUDIES = ROOT / "bench" / "quality"
SMALL = (STUDIES / "small.toml").read_text(encoding="utf-8")


def study(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def run(*argv: object) -> int:
    return quality.main([str(word) for word in argv])


def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return found


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert run(*argv) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "step/s" not in line]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated collection in small, and the study of it with three steps of training for each hundred."""
    root = tmp_path_factory.mktemp("quality")
    assert collection.main(["--output_dir", str(root / "collection"), "--size", "0.05"]) == 0
    short = re.sub(r"--max_steps \d+", "--max_steps 2 --per_device_train_batch_size 2 --save_strategy no", SMALL)
    study(root / "small.toml", short.replace("runs/study", str(root)))
    return root


@pytest.fixture(scope="module")
def ended(shared: Path) -> Path:
    assert run(shared / "small.toml", "--output", shared / "out") == 0
    return shared / "out"


def test_a_study_in_small_ends_in_runs_measures_tables_and_plots(ended: Path, shared: Path, tmp_path: Path) -> None:
    found = results(ended)
    seeded = ("labels", "distilled loss=hybrid", "distilled loss=ranknet")
    cells = {(cell["system"], cell["seed"]) for cell in found["cells"]}
    assert cells == {("teacher", None), *((system, seed) for system in seeded for seed in (0, 1))}
    steps = [step for step in found["steps"] if "seed=" in step]  # as they were run
    assert steps == sorted(steps, key=lambda step: "seed=1" in step)
    runs = {path.stem: path for path in (ended / "runs").iterdir()}
    assert len(runs) == len(found["cells"])
    argv = [
        "--data",
        shared / "collection/test.jsonl",
        "--output",
        tmp_path / "table.json",
        "--systems",
        *runs.values(),
    ]
    assert evaluate.main([str(word) for word in argv]) == 0
    expected = {Path(row["system"]).stem: row for row in json.loads((tmp_path / "table.json").read_text())}
    for cell in found["cells"]:
        seed = "" if cell["seed"] is None else f"_seed_{cell['seed']}"
        row = expected[f"{cell['system'].replace(' ', '_')}_generated{seed}"]
        # A run has ranks only, so pairs with equal scores are not ties there.
        assert cell["ndcg@10"] == pytest.approx(row["ndcg@10"])
        assert len(cell["queries"]) == row["queries"] == 10
    assert {step.partition("/")[0] for step in found["cells"][-1]["steps"]} == {
        "bert",
        "teacher",
        "scores",
        "distilled",
        "ranking",
    }
    assert sorted(found["steps"]) == sorted(
        str(path.parent.relative_to(ended / "steps")) for path in ended.glob("steps/*/*/log.txt")
    )
    for name in ("comparison-systems", "comparison-loss", "curve-cost"):
        assert (ended / f"{name}-generated.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}-generated.png)" in (ended / "report.md").read_text()
    (against,) = [row for row in found["comparisons"] if row["comparison"] == "loss"]
    hybrid, ranknet = (
        [cell["ndcg@10"] for cell in found["cells"] if loss in cell["system"]] for loss in ("hybrid", "ranknet")
    )
    assert against["system"] == "distilled loss=ranknet"
    assert against["ndcg@10_difference"] == pytest.approx(sum(ranknet) / 2 - sum(hybrid) / 2)
    assert len(found["data"]) == 3 and found["versions"]["torch"]
    assert found["steps"]["scores/once"]["pairs"] == found["cells"][-1]["teacher_scores"] == 20 * (10 + 75)


@pytest.fixture
def restored(ended: Path, tmp_path: Path) -> Iterator[Path]:
    """The study's folder, for a test to change."""
    before = shutil.copytree(ended, tmp_path / "before")
    yield ended
    shutil.rmtree(ended)
    shutil.move(before, ended)


def test_what_has_ended_stays_and_what_changed_runs_again(
    restored: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in restored.glob("steps/*/*/log.txt")}
    text = (shared / "small.toml").read_text()
    changed = study(tmp_path / "small.toml", text.replace("--objective ranknet", "--objective kl"))
    assert run(changed, "--output", restored, "--only", "distilled *ranknet", "labels") == 0
    now = {path: path.stat().st_mtime_ns for path in restored.glob("steps/*/*/log.txt")}
    again = {str(path.parent.relative_to(restored / "steps")) for path in before if before[path] != now[path]}
    distilled = {f"distilled/loss=ranknet,seed={seed}" for seed in (0, 1)}
    ranked = {f"ranking/loss=ranknet,seed={seed},student=distilled,test=held_back" for seed in (0, 1)}
    assert again == distilled | ranked
    errors = capsys.readouterr().err
    assert "distilled/loss=ranknet,seed=0: its command changed: runs again" in errors
    assert re.search(r"ranking/loss=ranknet,seed=1\S*: what it reads \(distilled/loss=ranknet,seed=1\) changed", errors)
    assert run(changed, "--output", restored, "--only", "labels", "--seeds", 1) == 0
    assert [(cell["system"], cell["seed"]) for cell in results(restored)["cells"]] == [("labels", 1)]
    data = tmp_path / "test.jsonl"
    data.write_bytes((shared / "collection/test.jsonl").read_bytes() + b"\n")
    line = fails(capsys, shared / "small.toml", "--output", restored, "--data", f"held_back={data}")
    assert f"held_back: {data} changed since the last run" in line


def under_way(log: Path, attempts: int) -> psutil.Process:
    """The process that writes the log, once so many attempts have trained."""
    eventually(
        lambda: log.exists() and len(re.findall(r"^\$ .*\n(?:.*\n)*?.*'loss'", log.read_text(), re.M)) >= attempts
    )
    return next(each for each in psutil.Process().children(recursive=True) if writes(each, log))


def writes(process: psutil.Process, log: Path) -> bool:
    with suppress(psutil.Error):  # one that has just ended
        return str(log) in {file.path for file in process.open_files()}
    return False


def test_a_cell_that_fails_is_reported_and_one_that_was_killed_goes_on(shared: Path, tmp_path: Path) -> None:
    """One training diverges, one is killed, the runner is killed, then stopped; the last run has all but the first."""
    tiny, output = tiny_bert(tmp_path / "bert"), tmp_path / "out"
    few = "--per_device_train_batch_size 1 --documents_per_query 2 --logging_steps 1 --disable_tqdm true"
    text = f"""
        title = "Faults"
        data = {{ judged = "{shared}/collection/train.jsonl", held_back = "{shared}/collection/test.jsonl" }}
        collections.one.test = "{{held_back}}"
        comparisons.rates.baseline = "student rate=good"
        systems.student.run = "{{ranking}}"
        [variants.rate]
        diverges = "--learning_rate 1e30"
        killed = "--learning_rate 1e-3"
        good = "--learning_rate 1e-4"
        [steps]
        student = '''trainer.rank_sft --model {tiny} --data {{judged}} {few} --max_steps 250 {{rate}}
            --output_dir {{out}}'''
        ranking = "trainer.score --model {{student}} --data {{test}} --output {{out}}.parquet"
    """
    argv = [study(tmp_path / "faults.toml", text), "--output", str(output)]
    killed, good = (output / "steps/student" / f"rate={rate}.partial/log.txt" for rate in ("killed", "good"))
    runner = SERVER.Process(target=quality.main, args=(argv,))
    runner.start()
    under_way(killed, attempts=1).kill()
    training = under_way(good, attempts=1)
    runner.kill()
    eventually(lambda: not training.is_running())
    assert good.read_text().count("stopped by SIGTERM") == 1

    def stop() -> None:
        under_way(good, attempts=2)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    stopper.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert good.read_text().count("stopped by SIGTERM") == good.read_text().count("resumes from") + 1 == 2

    assert run(*argv) == 1
    found = results(output)
    assert [cell["system"] for cell in found["cells"]] == ["student rate=killed", "student rate=good"]
    assert [found["steps"][f"student/rate={rate}"]["attempts"] for rate in ("killed", "good")] == [2, 3]
    (reason,) = found["failed"].values()
    assert "student/rate=diverges: exit code 1: error: the loss is nan" in reason
    assert reason in (output / "report.md").read_text()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Judged queries, a pool that has half of them again in other words and under other ids, and an order of all."""
    judged = write_groups(tmp_path / "judged.jsonl", queries=8)
    pool = write_groups(tmp_path / "pool.jsonl", queries=4, seed=1, name="p")
    for line in judged.read_text().splitlines()[:4]:
        record = json.loads(line)
        words = " ".join(reversed(record["query"].title().split()))
        with pool.open("a") as file:
            file.write(json.dumps({**record, "query_id": f"again-{record['query_id']}", "query": f" {words}?"}) + "\n")
    orders = tmp_path / "orders.run"
    orders.write_text("".join(write_candidates(tmp_path / "some.run", each).read_text() for each in (judged, pool)))
    return {"judged": judged, "pool": pool, "orders": orders}


def orders_study(files: dict[str, Path], collections: str, data: str = "{test}", leaks: str = "refuse") -> str:
    """A study whose only step is quick: the order of a run as scores."""
    return f"""
        title = "Orders"
        leaks = "{leaks}"
        collections = {{ {collections} }}
        systems.scored.run = "{{scored}}"
        comparisons.none.baseline = "scored"
        [steps]
        scored = "trainer.score --run {{orders}} --data {data} --output {{out}}.parquet"
        [data]
        judged = "{files["judged"]}"
        pool = "{files["pool"]}"
        orders = "{files["orders"]}"
    """


def test_folds_are_joined_before_they_are_measured(files: dict[str, Path], tmp_path: Path) -> None:
    collections = 'whole = { test = "{judged}" }, folded = { test = "{judged}", folds = 3 }'
    path, output = study(tmp_path / "folds.toml", orders_study(files, collections)), tmp_path / "out"
    assert run(path, "--output", output) == 0
    whole, folded = results(output)["cells"]
    assert (len(whole["steps"]), len(folded["steps"])) == (1, 3)
    assert [{**line, "system": ""} for line in folded["queries"]] == [
        {**line, "system": ""} for line in whole["queries"]
    ]
    assert run(path, "--output", output, "--collections", "whole") == 0
    assert len(results(output)["cells"]) == 1


def test_a_fold_trains_on_all_queries_that_it_does_not_rank(files: dict[str, Path], tmp_path: Path) -> None:
    ids = {group.query_id for group in read_groups(files["judged"])}
    parts = {f"{key}{number}": f"{{judged.{key}{number}of3}}" for key in ("test", "train") for number in range(3)}
    sources = Sources({"judged": str(files["judged"]), **parts, "less": "{train0.test0of2}"}, tmp_path / "out")
    for name, part in parts.items():  # a part of data is a fold
        assert sources[name] == sources[part[1:-1]]
    assert {each.query_id for each in sources.groups("less")} < {each.query_id for each in sources.groups("train0")}
    tested = set[str]()
    for number in range(3):
        test, train = (
            {each.query_id for each in sources.groups(f"judged.{key}{number}of3")} for key in ("test", "train")
        )
        assert test
        assert train == ids - test
        assert not test & tested
        tested |= test
    assert tested == ids


def test_a_baseline_is_that_of_evaluate(files: dict[str, Path], tmp_path: Path) -> None:
    text = orders_study(files, 'one = { test = "{half}" }').replace(
        'systems.scored.run = "{scored}"', 'systems = { bm25.run = "bm25", scored.run = "random" }'
    )
    path, output = study(tmp_path / "baselines.toml", f'{text}half = "{{judged.test0of2}}"\n'), tmp_path / "out"
    assert run(path, "--output", output) == 0
    table = tmp_path / "table.json"
    argv = (
        f"--data {output}/data/judged.test0of2.jsonl --systems bm25 scored=random --measures nDCG@10 --output {table}"
    )
    assert evaluate.main(argv.split()) == 0
    cells = [{key: cell[key] for key in ("system", "ndcg@10", "pnr")} for cell in results(output)["cells"]]
    assert cells == [{key: row[key] for key in cells[0]} for row in json.loads(table.read_text())]


def test_test_queries_are_not_trained_on(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for policy in ("refuse", "report", "drop"):
        text = orders_study(files, 'one = { test = "{judged}" }', "{test} {pool}", policy)
        argv = (study(tmp_path / f"{policy}.toml", text), "--output", tmp_path / policy)
        if policy == "refuse":
            line = fails(capsys, *argv)
            assert (
                "pool: 4 of its queries are, or nearly are, queries of the test judged, such as 'again-q0' and 'q0'"
                in line
            )
            assert not (tmp_path / policy / "steps").exists()
            continue
        assert run(*argv) == 0
        found = results(tmp_path / policy)
        ((count, documents),) = [(len(each["queries"]), each["documents"]) for each in found["leaks"]]
        assert (count, documents) == (4, 6)  # every query of these has documents d0 to d5
        (step,) = found["steps"].values()
        assert step["pairs"] == 6 * (8 + (8 if policy == "report" else 4))
        assert "| pool | judged | 4 | 6 |" in (tmp_path / policy / "report.md").read_text()
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / policy).glob("data/*.jsonl")}
        assert run(*argv) == 0
        assert made == {path: path.stat().st_mtime_ns for path in made}  # else a stage that was stopped cannot go on


@given(
    st.lists(st.text("ab ", min_size=1, max_size=12), max_size=12),
    st.lists(st.text("ab ", min_size=1, max_size=12), max_size=12),
)
def test_no_near_duplicate_is_missed(trained: list[str], tested: list[str]) -> None:
    """Looking up rare trigrams finds what comparing all pairs finds."""

    def side(queries: list[str]) -> list[Asked]:
        return [Asked(str(place), query, frozenset()) for place, query in enumerate(queries)]

    def alike(left: frozenset[str], right: frozenset[str]) -> bool:
        return bool(right) and len(left & right) >= RESEMBLANCE * len(left | right)

    expected = {
        str(place)
        for place, query in enumerate(trained)
        if any(alike(trigrams(query), trigrams(other)) for other in tested)
    }
    assert {query_id for query_id, _ in leak("a", side(trained), "b", side(tested)).queries} == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Orders"', "title = Orders", "bad.toml: Invalid value"),
        ('title = "Orders"', "", "bad.toml: title: Field required"),
        ('leaks = "refuse"', 'leaks = "maybe"', "leaks: Input should be 'refuse', 'drop' or 'report'"),
        ("{scored}", "{ranked}", "system 'scored': {ranked} is no data, step, variant or key of a collection"),
        ("trainer.score", "trainer.sorce", "step 'scored': 'trainer.sorce' is no command of this project"),
        (" --output {out}.parquet", "", "step 'scored': its command has no {out}"),
        ("{test} ", "{scored} ", "a cycle: scored needs scored"),
        (
            'run = "{scored}"',
            'run = "{scored}"\nsystems.scored.loss = "kl"',
            "system 'scored': loss = 'kl' is no variant",
        ),
        ("{test} ", "{test} {train} ", "{train} is no data"),
        ('test = "{judged}"', 'test = "{scored}"', "collection 'one': test = '{scored}' must be data"),
        ("[data]", "[data]\nscored = ''", "'scored' is the name of two things"),
        ("[data]", "[data]\nhalf = '{half.test0of2}'", "data 'half': {half.test0of2} is no part of data above it"),
        ("Orders", "Orders", "--seeds 7: the seeds of"),
        ("[data]", "[curves.c]\nx = 'size'\n[data]", "curve 'c': x = 'size'"),
        ('baseline = "scored"', 'baseline = "score"', "comparison 'none': no system is named 'score'"),
        (
            'baseline = "scored"',
            'baseline = "score*"',
            "comparison 'none': no system is named 'score*'; there are scored",
        ),
        ("trainer.score ", "bench ", "step 'scored': 'bench' is no command of this project"),
        ('title = "Orders"', 'title = "Orders"\nmeasures = ["nDCG@1O"]', "nDCG@1O"),
        ('judged = "', 'judged = "/nowhere', "judged: /nowhere"),
        ("Orders", "Orders", "--data none: not among the data"),
        ("Orders", "Orders", "--only nobody: no system of"),
        ("Orders", "Orders", "--collections two: those of"),
    ],
)
def test_bad_studies_are_one_line(
    old: str, new: str, message: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = orders_study(files, 'one = { test = "{judged}" }')
    assert old in text
    path = study(tmp_path / "bad.toml", text.replace(old, new))
    flags = {
        "--data none": "--data none=x",
        "--only": "--only scored nobody",
        "--collections": "--collections one two",
        "--seeds 7": "--seeds 7",
    }
    more = [word for key, typed in flags.items() if key in message for word in typed.split()]
    assert message in fails(capsys, path, "--output", tmp_path / "out", *more)
    assert not (tmp_path / "out" / "steps").exists()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_that_are_here_can_be_planned(path: Path) -> None:
    for shape in re.findall(r"[\w/-]+\.json\b", path.read_text()):
        assert (ROOT / shape).is_file()
    declared = read_study(path)
    systems = {cell.system for cell in Planner(declared).cells()}
    assert {comparison.baseline for comparison in declared.comparisons.values()} <= systems
