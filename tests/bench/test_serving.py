"""The bench of serving: the load that it makes, what it counts, and what it says of it."""

from __future__ import annotations

import io
import itertools
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.environments import BenchError
from bench.report import Spread
from bench.serving import limits, plots, tables, traffic
from bench.serving.cells import Cell, Pair, Sample
from bench.serving.contenders import LONGEST_S, Contender, rounds, start
from bench.serving.contenders import measure as measure_cell
from bench.serving.course import Findings, best
from bench.serving.load import LoadError, Score, measure
from bench.serving.processes import Measured, Running
from bench.serving.quality import Judge, Quality, choose
from bench.serving.systems import IN_PROCESS, OURS, System
from bench.serving.traffic import Traffic
from bench.serving.worker import serve
from bench.serving.workers.engine import EngineSystem
from bench.serving.workers.matrices import CHAINS, Shape
from bench.serving.workers.ours import OursSystem
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import write_groups
from tests.support.servers import Server
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


def test_all_systems_get_the_same_requests(tmp_path: Path) -> None:
    traffic.save(tmp_path / "traffic.json", GROUPS)
    one, other = (Traffic(traffic.load(tmp_path / "traffic.json")).requests(3, 0.5, seed=7) for _ in range(2))
    assert list(itertools.islice(one, 20)) == list(itertools.islice(other, 20))


def test_a_closed_loop_has_as_many_callers_as_asked_and_counts_what_they_got() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def score(query: str, documents: tuple[str, ...]) -> list[float]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
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


def test_a_running_server_is_loaded_and_scored(
    server: Server, groups: list[QueryGroup], served_checkpoint: Path
) -> None:
    system = OursSystem(server.url)
    sample = measure(system.connect, Traffic(GROUPS).requests(5, 0.5), Cell(5, 3, 0.1, least=9))
    assert sample.documents == 5 * len(sample.milliseconds) >= 45
    judge = Judge.of(str(served_checkpoint), groups, 12)
    quality = judge.quality([system.connect()(query, tuple(texts)) for query, texts in judge.pairs()])
    assert quality.tau == pytest.approx(1.0)
    assert quality.passes
    worst = judge.quality([[-value for value in scores.values()] for scores in judge.reference.values()])
    assert worst.tau == pytest.approx(-1.0)


def test_the_engine_alone_and_matrices(served_checkpoint: Path, served_repository: Path) -> None:
    system = EngineSystem({"checkpoint": str(served_checkpoint), "repository": str(served_repository)})
    source = Traffic(GROUPS)
    alone = system.alone(source, documents=20, seconds=0.01, seed=0)
    assert alone["tokens_per_second"] / alone["documents_per_second"] == pytest.approx(alone["mean_tokens"])
    assert 0 < alone["fill"] <= 1
    matrix = system.matrix_limit(source, "fp32", 0.01)
    assert matrix["runs_in"] == "f32"
    assert matrix["flop_per_token"] == 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert CHAINS["openvino"](Shape(32, 64, 1), "int8")[1] in ("i8", "u8")
    run, _ = CHAINS["onnxruntime"](Shape(32, 64, 1), "int8")
    run()


def worker(tmp_path: Path, module: str, **more: object) -> Running:
    traffic.save(tmp_path / "traffic.json", GROUPS)
    setup = {"traffic": str(tmp_path / "traffic.json"), "threads": 1, **more}
    return Running("a system", Path(sys.executable), module, setup, tmp_path)


def cross_encoder(tmp_path: Path, checkpoint: Path) -> System:
    traffic.save(tmp_path / "traffic.json", GROUPS)
    setup = {"traffic": str(tmp_path / "traffic.json"), "threads": 1, "checkpoint": str(checkpoint),
             "backend": "torch", "precision": "fp32", "max_pair_tokens": 256}  # fmt: skip
    module = "bench.serving.workers.cross_encoder"
    return System("peer", "sentence-transformers", "fp32", Path(sys.executable), module, (setup,), IN_PROCESS[:2])


def test_a_peer_in_a_process_of_its_own(served_checkpoint: Path, groups: list[QueryGroup], tmp_path: Path) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        contender = start(cross_encoder(tmp_path, served_checkpoint), tmp_path, stack)
        assert contender.versions.keys() >= {"sentence-transformers", "torch"}
        assert contender.trials.keys() == {"batch size 8", "batch size 32"}
        assert contender.option["batch_size"] in (8, 32)
        judge = Judge.of(str(served_checkpoint), groups, 12)
        assert judge.quality(contender.process.scores(judge.pairs())).tau == pytest.approx(1.0)
        cell = Cell(3, 2, 0.05)
        rounds([contender], [cell], 2, lambda _: None)
        first, second = contender.results[cell]
        assert first.cpu_seconds > 0
        assert second.memory_bytes > 2**26
        slow = replace(cell, documents=10**9)
        measure_cell(contender, slow, seed=0)
        assert "too slow" in contender.failures[slow]


def test_a_worker_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    process = worker(tmp_path, "bench.serving.workers.ours", repository="/nowhere", directory=str(tmp_path / "triton"))
    try:
        with pytest.raises(BenchError, match=r"a system: OSError: the server ended with 2: .*nowhere"):
            process.wait()
    finally:
        process.close()


class Echo:
    """Answers lengths."""

    def __init__(self) -> None:
        self.versions = {"echo": "1"}

    def connect(self) -> Score:
        return lengths

    def use(self, option: dict[str, object]) -> None:
        raise ValueError(f"no option {sorted(option)}")


def test_a_worker_answers_line_by_line_and_goes_on_after_an_error() -> None:
    questions = [
        {"ask": "scores", "pairs": [["q", ["ab", "c"]]]},
        {"ask": "use", "option": {"x": 1}},
        {"ask": "load", "cell": {"documents": 2, "concurrency": 1, "seconds": 0.0}, "seed": 0, "hot": True},
    ]
    answers = io.StringIO()
    serve(Echo(), Traffic(GROUPS), io.StringIO("".join(f"{json.dumps(each)}\n" for each in questions)), answers)
    hello, scores, error, sample = map(json.loads, answers.getvalue().splitlines())
    assert hello == {"versions": {"echo": "1"}}
    assert scores == {"scores": [[2.0, 1.0]]}
    assert error == {"error": "ValueError: no option ['x']"}
    assert Sample(**sample).documents == 2


def measured(speed: float) -> Measured:
    return Measured(Sample(speed, 100, [1.0, 2.0, 3.0]), cpu_seconds=5.0, memory_bytes=2**30)


def contender(name: str, kind: str, found: dict[Cell, list[float]]) -> Contender:
    system = System(name, kind, "fp32", Path(sys.executable), "", ({},))
    results = {cell: [measured(speed) for speed in speeds] for cell, speeds in found.items()}
    return Contender(system, None, {"a": "1"}, {"as it is": 9.0}, {}, results)  # type: ignore[arg-type]


LARGE, MANY = Cell(1000, 1, 1.0), Cell(10, 16, 1.0)


@pytest.fixture
def findings() -> Findings:
    found = [
        contender("ours fp32", OURS, {LARGE: [300, 280], MANY: [200, 220]}),
        contender("fast", "sentence-transformers", {LARGE: [250, 250], MANY: [100, 100]}),
        contender("slow", "sentence-transformers", {LARGE: [100, 140], MANY: [40, 50]}),
    ]
    qualities = {"ours fp32": Quality(1.0, 0.0), "fast": Quality(0.8, -0.02), "slow": Quality(0.99, -0.001)}
    limit = limits.Limits(
        served=Spread(270, 260, 280), engine=Spread(300, 280, 320), share=Spread(0.9, 0.8, 1.0),
        full_rows=Spread(310, 300, 320), matrices=700.0, matrix_share=0.45, matrix_flop_per_second=1e12,
        matrices_run_in="f32", mean_tokens=92.0, fill=0.97,
    )  # fmt: skip
    growth = limits.Growth((1, 10, 100), (92.0, 920.0, 9200.0), (0.01, 0.1, 1.0), 0.999)
    tail = limits.Tail(20.0, 0.7, 50.0, 200.0)
    return Findings(found, qualities, {"ours fp32": limit}, {"ours fp32": tail}, {"ours fp32": growth})


def test_only_systems_of_equal_quality_are_the_best_of_their_kind(findings: Findings) -> None:
    for shape in (LARGE.shape, MANY.shape):
        slow = best(findings, "sentence-transformers", shape)
        assert slow is not None and slow.name == "slow"
    assert best(findings, "infinity", LARGE.shape) is None
    assert best(findings, OURS, (7, 7)) is None


def test_rows_tables_and_plots(findings: Findings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tables.rows(findings.contenders)
    assert [row.system for row in made[:3]] == ["ours fp32", "fast", "slow"]
    assert made[1].ratios == {"ours fp32": Spread.of([300 / 250, 280 / 250])}
    assert made[0].ratios == {}
    assert made[0].milliseconds == pytest.approx((2.0, 2.9, 2.98))
    assert made[0].cpu_per_thousand == 50.0
    console = Console(width=240)
    console.print(tables.speed_table(made, "title"))
    console.print(tables.system_table(findings.contenders, findings.qualities, {"infinity": "no such wheel"}))
    console.print(tables.limit_table(findings.limits, findings.tails, findings.growth))
    printed = capsys.readouterr().out
    for part in ("1.16x [1.12, 1.20]", "(not equal)", "no such wheel", "90%", "4.0x (200 of 50 ms)", "99.90%"):
        assert part in printed
    plots.draw_speeds(made, tmp_path / "speeds.png", "title")
    plots.draw_growth(findings.growth, tmp_path / "growth.png", "title")
    for name in ("speeds.png", "growth.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_growth_is_measured_in_tokens(server: Server, served_checkpoint: Path) -> None:
    class Direct:
        def load(self, cell: Cell, seed: int = 0) -> Measured:
            sample = measure(OursSystem(server.url).connect, Traffic(GROUPS).requests(cell.documents, 0.0, seed), cell)
            return Measured(sample, 1.0, 1)

    one = replace(contender("ours fp32", OURS, {}), process=Direct())  # type: ignore[arg-type]
    found = limits.growth(one, Traffic(GROUPS), PairEncoder.load(served_checkpoint), 0.0, sizes=(1, 20, 40))
    assert found.tokens[2] == pytest.approx(2 * found.tokens[1], rel=0.2)
    assert found.r_squared <= 1
    tail = limits.tail(one, 0.1)
    assert tail.p99 >= tail.p50 > 0


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
    from bench.serving.__main__ import main

    assert main([*flags, "--work_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_what_takes_too_long_is_not_measured() -> None:
    one = contender("slow", "fastembed", {})
    cell = Cell(int(9.0 * LONGEST_S) + 1, 1, 1.0)
    measure_cell(one, cell, seed=0)
    assert one.failures == {cell: "9.0 documents/s in the trial: too slow for this"}
