"""The bench of serving: the load that it makes, what it counts, and what it says of it."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.environments import BenchError
from bench.report import Spread
from bench.serving import contenders, limits, tables
from bench.serving.__main__ import main, report
from bench.serving.arguments import ServingArguments
from bench.serving.contenders import LONGEST_S, Contender, best_peers, rounds, start
from bench.serving.course import prepared
from bench.serving.load import Cell, LoadError, Pair, Sample, Score, Way, measure
from bench.serving.processes import Measured, Running
from bench.serving.quality import Judge, Quality, choose
from bench.serving.systems import IN_PROCESS, OURS, System
from bench.serving.traffic import Traffic
from bench.serving.worker import serve
from bench.serving.workers.cross_encoder import CrossEncoderWorker
from bench.serving.workers.engine import EngineWorker
from bench.serving.workers.matrices import CHAINS
from bench.serving.workers.ours import OursWorker
from client.wire import PARTS
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import late_interaction_of, tiny_bert, write_groups
from tests.support.echo_worker import EchoWorker
from tests.support.servers import Server
from tests.support.waiting import PATIENCE_S
from trainer.data.records import QueryGroup, read_groups

GROUPS: list[Pair] = [
    ("bridge", ("river bridge engine", "market garden window planet")),
    ("teacher", ("lesson recipe bread cheese apple", "tunnel harbor", "music guitar violin")),
]


@pytest.fixture
def groups(tmp_path: Path) -> list[QueryGroup]:
    return read_groups(write_groups(tmp_path / "data.jsonl", queries=3, documents=8))


def lengths(query: str, documents: tuple[str, ...]) -> list[float]:
    return [float(len(document)) for document in documents]


def test_requests_have_the_querys_own_documents_first_and_never_the_same_text_again() -> None:
    requests = list(itertools.islice(Traffic(GROUPS).requests(4, 0.0), 60))
    assert [query for query, _ in requests[:3]] == ["bridge", "teacher", "bridge"]
    own = {" ".join(sorted(text.split())) for text in GROUPS[0][1]}
    assert {" ".join(sorted(text.split())) for text in requests[0][1][:2]} == own
    texts = [text for _, documents in requests for text in documents]
    assert all(len(documents) == 4 for _, documents in requests)
    assert len(set(texts)) == len(texts)


def test_the_wanted_share_of_documents_was_sent_before() -> None:
    source = Traffic(GROUPS)
    sent = [text for _, documents in itertools.islice(source.requests(10, 0.9), 100) for text in documents]
    assert sum(text in source.hot for text in sent) / len(sent) == pytest.approx(0.9, abs=0.03)


def test_all_systems_get_the_same_requests() -> None:
    one, other = (Traffic(GROUPS).requests(3, 0.5, seed=7) for _ in range(2))
    assert list(itertools.islice(one, 20)) == list(itertools.islice(other, 20))


def test_a_closed_loop_has_as_many_callers_as_asked_and_counts_what_they_got() -> None:
    inside, most, lock, all_inside = 0, 0, threading.Lock(), threading.Event()

    def score(query: str, documents: tuple[str, ...]) -> list[float]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if most == 4:
                all_inside.set()
        all_inside.wait(PATIENCE_S)
        time.sleep(0.01)
        with lock:
            inside -= 1
        return lengths(query, documents)

    sample = measure(lambda: score, Traffic(GROUPS).requests(3, 0.0), Cell(3, 4, 0.1, least=12))
    assert most == 4
    assert len(sample.milliseconds) >= 12
    assert sample.documents == 3 * len(sample.milliseconds)
    assert min(sample.milliseconds) >= 10
    assert 0 < sample.documents_per_second <= 4 * 3 / 0.01  # four callers, 10 ms or more each


def test_a_system_that_serves_in_turn_gets_no_credit_for_who_waits() -> None:
    turn = threading.Lock()

    def score(query: str, documents: tuple[str, ...]) -> list[float]:
        with turn:
            time.sleep(0.02)
        return lengths(query, documents)

    sample = measure(lambda: score, Traffic(GROUPS).requests(1, 0.0), Cell(1, 8, 0.02))
    assert sample.documents_per_second <= 1 / 0.02


def test_an_open_loop_counts_the_time_that_a_request_waits() -> None:
    def score(query: str, documents: tuple[str, ...]) -> list[float]:
        time.sleep(0.02)
        return lengths(query, documents)

    # Ten times what one connection can take: the last waits for all before it.
    sample = measure(lambda: score, Traffic(GROUPS).requests(1, 0.0), Cell(1, 1, 0.1, rate=500.0))
    assert len(sample.milliseconds) > 10
    assert max(sample.milliseconds) > 20 * len(sample.milliseconds) / 2


@pytest.mark.parametrize("rate", [0.0, 50.0])
def test_a_failure_under_load_ends_it(rate: float) -> None:
    def fails(query: str, documents: tuple[str, ...]) -> list[float]:
        raise ValueError("full")

    def refuses() -> Score:
        raise OSError("no route")

    cell = Cell(2, 3, 0.2, rate=rate)
    with pytest.raises(LoadError, match="ValueError: full"):
        measure(lambda: fails, Traffic(GROUPS).requests(2, 0.0), cell)
    with pytest.raises(LoadError, match="OSError: no route"):
        measure(refuses, Traffic(GROUPS).requests(2, 0.0), cell)
    with pytest.raises(LoadError, match="1 scores for 2 documents"):
        measure(lambda: lambda *_: [1.0], Traffic(GROUPS).requests(2, 0.0), cell)


class Direct:
    """A worker of this process that is asked as one of another would be."""

    def __init__(self, worker: OursWorker) -> None:
        self._worker, worker.traffic = worker, Traffic(GROUPS)

    def load(self, cell: Cell, seed: int = 0) -> Measured:
        return Measured(self._worker.load(cell, seed, hot=False), 1.0, 1)

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)


def test_a_running_server_is_loaded_and_scored(
    server: Server, groups: list[QueryGroup], served_checkpoint: Path
) -> None:
    worker = OursWorker(server.ports)
    sample = measure(worker.connect, Traffic(GROUPS).requests(5, 0.5), Cell(5, 3, 0.1, least=9))
    assert sample.documents == 5 * len(sample.milliseconds) >= 45
    judge = Judge.of(str(served_checkpoint), groups, 12)
    quality = judge.quality(worker.scores(judge.pairs()))
    assert quality.tau == pytest.approx(1.0)
    assert quality.passes
    worst = judge.quality([[-value for value in scores.values()] for scores in judge.reference.values()])
    assert worst.tau == pytest.approx(-1.0)

    one = contender("ours fp32", OURS, {})
    one.process = Direct(worker)  # type: ignore[assignment]
    found = limits.growth(one, Traffic(GROUPS), PairEncoder.load(served_checkpoint), 0.0, sizes=(1, 20, 40))
    assert found.tokens[2] == pytest.approx(2 * found.tokens[1], rel=0.2)
    assert found.r_squared <= 1
    tail = limits.tail(one, 0.1)
    assert tail.p99 >= tail.p50 > 0
    cell = Cell(10, 2, 0.1, least=4)
    (way,) = limits.ways(one, [cell, Cell(11, 1, 0.1)]).values()
    requests, seconds = len(way.sample.milliseconds), way.sample.documents / way.sample.documents_per_second
    assert [*way.parts] == [
        f"{step} {part}" for step in ("tokenizer", "student") for part in PARTS[f"{step.upper()}_MS"]
    ]
    assert sum(way.parts.values()) <= sum(way.sample.milliseconds) / requests
    assert 0 < way.engine_share <= 1
    assert 0 < way.calls_per_second * seconds <= requests
    assert way.tokens_per_call > 10


def test_the_engine_alone_and_matrices(served_checkpoint: Path, served_repository: Path) -> None:
    setup = {"checkpoint": str(served_checkpoint), "repository": str(served_repository), "precision": "fp32"}
    worker = EngineWorker(setup)
    worker.traffic = Traffic(GROUPS)
    alone = worker.alone(documents=20, seconds=0.01, seed=0)
    assert alone["documents_per_second"] > 0 and alone["full_tokens_per_second"] > 0
    assert 0 < alone["fill"] <= 1
    matrix = worker.matrix_limit(0.01)
    assert matrix["runs_in"] == "f32"
    assert matrix["flop_per_token"] == 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    for library, types in (("openvino", ("i8", "u8")), ("onnxruntime", ("u8 by i8",))):
        run, runs_in = CHAINS[library]([(32, 64), (64, 32)], "int8")
        assert runs_in in types
        run()


def test_a_peer_scores_as_the_checkpoint_does(served_checkpoint: Path, groups: list[QueryGroup]) -> None:
    setup = {"checkpoint": str(served_checkpoint), "backend": "torch", "precision": "fp32", "max_pair_tokens": 256}
    worker, judge = CrossEncoderWorker(setup), Judge.of(str(served_checkpoint), groups, 12)
    assert worker.versions.keys() >= {"sentence-transformers", "torch"}
    assert judge.quality(worker.scores(judge.pairs())).tau == pytest.approx(1.0)


def test_a_system_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CALLERS", Cell(10, 8, 0.05))
    monkeypatch.setattr(contenders, "WARM_UP_S", 0.01)
    monkeypatch.setattr(System, "module", "tests.support.echo_worker")
    with ExitStack() as stack:
        one = start(System("peer", "echo", "", {"traffic": GROUPS, "threads": 1}, IN_PROCESS[:2]), tmp_path, stack)
        assert one.process.versions == {"echo": "1"}
        assert one.trials.keys() == {"batch size 8", "batch size 32"}
        assert one.option["batch_size"] in (8, 32)
        assert one.process.ask("scores", [["q", ["ab", "c"]]]) == [[2.0, 1.0]]
        with pytest.raises(BenchError, match="peer: ValueError: no query"):
            one.process.ask("scores", [["", ["ab"]]])
        cell = Cell(3, 2, 0.1, repeated=0.5, least=1000)  # many ticks of the clock that counts processor time
        rounds([one], [cell], 2, lambda _: None)
        first, second = one.results[cell]
        assert first.cpu_seconds > 0
        assert second.memory_bytes > 2**23


def test_a_worker_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    setup = {"traffic": GROUPS, "threads": 1, "repository": tmp_path / "nowhere"}
    with pytest.raises(BenchError, match=r"a system: bench.children.StartError: the server ended with 2: .*nowhere"):
        Running("a system", Path(sys.executable), "bench.serving.workers.ours", setup, tmp_path)


def test_a_worker_answers_each_question_and_goes_on_after_an_error() -> None:
    questions = [("use", ({"x": 1},)), ("load", (Cell(2, 1, 0.0), 0, True))]
    worker, answers = EchoWorker(), io.BytesIO()
    worker.traffic = Traffic(GROUPS)
    serve(worker, io.BytesIO(b"".join(map(pickle.dumps, questions))), answers)
    answers.seek(0)
    hello, error, sample = (pickle.load(answers) for _ in range(3))
    assert hello == {"echo": "1"}
    assert isinstance(error, LoadError) and str(error) == "KeyError: 'batch_size'"
    assert sample.documents == 2


def measured(speed: float) -> Measured:
    return Measured(Sample(speed, 100, [1.0, 2.0, 3.0]), cpu_seconds=5.0, memory_bytes=2**30)


def contender(name: str, kind: str, found: dict[Cell, list[float]], quality: Quality | None = None) -> Contender:
    results = {cell: [measured(speed) for speed in speeds] for cell, speeds in found.items()}
    process: Any = SimpleNamespace(versions={"a": "1"})
    return Contender(System(name, kind, "", {}), process, {"as it is": 9.0}, {}, quality, results)


LARGE, MANY = Cell(1000, 1, 1.0), Cell(10, 16, 1.0)


@pytest.fixture
def found() -> list[Contender]:
    return [
        contender("ours fp32", OURS, {LARGE: [300, 280], MANY: [200, 220]}, Quality(1.0, 0.0)),
        contender("fast", "sentence-transformers", {LARGE: [250, 250], MANY: [100, 100]}, Quality(0.8, -0.02)),
        contender("middle", "sentence-transformers", {LARGE: [110, 150]}, Quality(0.99, -0.001)),
        contender("slow", "sentence-transformers", {LARGE: [100, 140], MANY: [40, 50]}, Quality(0.99, -0.001)),
        contender("unasked", "infinity", {LARGE: [900, 900]}),
    ]


def test_only_systems_of_equal_quality_are_the_best_of_their_kind(found: list[Contender]) -> None:
    assert [one.name for one in best_peers(found, LARGE)] == ["middle"]
    assert [one.name for one in best_peers(found, MANY)] == ["slow"]
    assert best_peers(found, Cell(7, 7, 1.0)) == []


def test_rows_tables_and_plots(found: list[Contender], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tables.rows(found)
    assert [row.system for row in made if row.cell == MANY] == ["ours fp32", "fast", "slow"]
    assert made[1].ratios == {"ours fp32": Spread.of([300 / 250, 280 / 250])}
    assert made[0].ratios == {}
    assert made[0].milliseconds == pytest.approx((2.0, 2.9, 2.98))
    assert made[0].cpu_per_thousand == 50.0
    limit = limits.Limits(
        served=Spread(270, 260, 280), engine=Spread(300, 280, 320), share=Spread(0.9, 0.8, 1.0),
        full_rows=Spread(310, 300, 320), matrices=700.0, matrix_share=0.45, matrix_flop_per_second=1e12,
        matrices_run_in="f32", mean_tokens=92.0, fill=0.97,
    )  # fmt: skip
    growth = limits.Growth((1, 10, 100), (92.0, 920.0, 9200.0), (0.01, 0.1, 1.0), 0.999)
    way = Way(Sample(33.0, 20, [500.0, 600.0]), {"student waiting": 444.0}, 0.87, 4.2, 1024.0)
    bounds = {"ours fp32": limits.Bounds(limit, limits.Tail(20.0, 0.7, 50.0, 200.0), growth, {MANY: way})}
    run = {"machine": {"cpu": "A processor", "cores": 2, "bf16_units": False}}
    report(tmp_path, run, found, bounds, {"infinity": "no such wheel"})
    printed = capsys.readouterr().out
    for part in ("1.16x [1.12, 1.20]", "(not equal)", "no such wheel", "90%", "4.0x (200 of 50 ms)", "99.90%",
                 "too slow to ask", "A processor", "444.0", "87%", "106.0"):  # fmt: skip
        assert part in printed
    written = json.loads((tmp_path / "serving.json").read_text())
    assert [one["quality"] and one["quality"]["passes"] for one in written["systems"]] == [
        True,
        False,
        True,
        True,
        None,
    ]
    assert written["rows"][0]["documents_per_second"] == {"median": 290, "low": 280, "high": 300}
    assert written["growth"]["ours fp32"]["r_squared"] == 0.999
    for name in ("serving.png", "serving-growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_judged_documents_are_chosen_first(groups: list[QueryGroup], tmp_path: Path) -> None:
    chosen = choose(groups, 9, seed=0)
    assert [len(group.documents) for group in chosen] == [3, 3, 3]
    assert all(document.label is not None for group in chosen for document in group.documents)
    assert read_groups(Judge(chosen, {}).save(tmp_path / "judged.jsonl")) == chosen


BAD_FLAGS = [
    (["--systems", "ours", "nobody"], "--systems nobody: not one of ours, st-torch"),
    (["--systems", "fastembed"], "--systems needs ours"),
    (["--rounds", "0"], "must be at least 1"),
    (["--data", "/nowhere.jsonl"], "/nowhere.jsonl"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_flags_are_named(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--work_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_student_that_no_peer_computes_is_compared_with_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = late_interaction_of(tiny_bert, tmp_path / "student")
    data = write_groups(tmp_path / "data.jsonl")
    flags = ["--student", str(student), "--data", str(data), "--work_dir", str(tmp_path / "work")]
    assert main(flags) == 2
    assert f"{student}: it scores by late interaction, which no peer computes" in capsys.readouterr().err
    alone = ServingArguments(data=[str(data)], student=str(student), systems=[OURS])
    assert prepared(alone, read_groups(data), tmp_path / "work").shared["checkpoint"] == student


def test_what_takes_too_long_is_not_measured() -> None:
    one = contender("slow", "fastembed", {})
    cell = Cell(int(9.0 * LONGEST_S) + 1, 1, 1.0)
    contenders.measure(one, cell, seed=0)
    assert one.failures == {cell: "9.0 documents/s in the trial: too slow for this"}
