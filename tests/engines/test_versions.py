"""Two engines of different precision in one repository: built, compared, switched while they are served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

import build_engines
from client import RankingClient
from engines import parity, versions
from engines.builders import processors
from engines.builders.openvino import OpenVino
from engines.parity import Limits, Yardstick
from engines.quantise.calibration import read_calibration
from engines.quantise.int8 import Products, quantise
from engines.records import Dimensions, Graph, Runner, runner
from engines.reference import torch_runner
from engines.repository.configs import read_config
from engines.repository.place import Place
from model_repository.student.runtime import graphs
from model_repository.student.runtime.graphs import EngineStartError, has_int8_units
from model_repository.student.runtime.openvino_engine import OpenVinoEngine, core
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.student.served import served_version
from model_repository.tokenizer.pair_encoding import Document, FloatArray, PairEncoder
from tests import ROOT
from tests.support.checkpoints import tiny_bert, write_groups
from tests.support.requests import QUERY, answer, documents, every_length
from tests.support.servers import INT8_PRODUCTS, INT8_RECORD, INT8_TAU, Reference, running
from tests.support.waiting import eventually
from trainer.checkpoints.load import load_scorer
from trainer.data.records import read_groups
from trainer.measures.metrics import kendall_tau

TRACKED = Dimensions(row_length=256, slots_per_row=16, max_rows=1000)
FEW = 2


@pytest.fixture
def repository(openvino_versions: Path) -> Path:
    return openvino_versions


def engine_scores(repository: Path, version: int, query: str, candidates: list[Document]) -> FloatArray:
    """By a version's engine, without a server."""
    encoder = PairEncoder.load(repository / "tokenizer")
    run = runner(PairScorer.load(repository / "student" / str(version), OpenVinoEngine))
    return run(encoder.encode(query, candidates))


def test_int8_manifest_says_what_is_in_int8_and_the_compiled_engine_agrees(repository: Path) -> None:
    directory = repository / "student/2"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["precision"], manifest["runs_in"]) == ("int8", "int8")
    assert manifest["cpu"]["int8"] == INT8_RECORD
    types = OpenVinoEngine(directory / "model.xml", "fp32", 1).product_types()
    assert sum(kind in ("i8", "u8") for kind in types) == INT8_PRODUCTS


def test_without_units_for_int8_weights_stay_in_the_half_of_the_range_that_is_not_cut_off(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where they do not, a processor without units refuses the engine."""
    model = core().read_model(repository / "student/2/model.xml")
    weights = [op.data for op in model.get_ops() if op.get_type_name() == "Constant" and op.data.dtype == np.int8]
    largest = max(int(np.abs(array.astype(int)).max()) for array in weights)
    assert len(weights) == INT8_PRODUCTS and (largest == 64) != has_int8_units()
    monkeypatch.setattr(graphs, "has_int8_units", lambda: False)
    manifest = json.loads((repository / "student/2/manifest.json").read_text())
    manifest["cpu"]["int8"]["full_range"] = True
    with pytest.raises(EngineStartError, match="student/2 was built on a processor with units for int8"):
        OpenVinoEngine.load(repository / "student/2", manifest, 1)


def test_the_server_follows_the_version_that_is_chosen(
    repository: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each engine through the server: 1 to 1,000 documents, of one token to a full row, of every script."""
    assert versions.main(["use", "1", "--model_repository", str(repository)]) == 0
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    requests = [documents(1, seed=1), documents(10, seed=10), documents(1000, longest=60), every_length(reference)]
    with running(repository, tmp_path / "log", *flags) as server, RankingClient(server.url) as client:
        for candidates in requests:
            expected = reference(QUERY, candidates).scores
            np.testing.assert_allclose(answer(client, QUERY, candidates).scores, expected, atol=1e-4, rtol=0)
        before = answer(client, QUERY, requests[1]).scores
        assert versions.main(["use", "latest", "--model_repository", str(repository)]) == 0
        eventually(lambda: not np.array_equal(answer(client, QUERY, requests[1]).scores, before))
        for candidates in requests:
            got = answer(client, QUERY, candidates)
            engine = engine_scores(repository, 2, QUERY, candidates)
            np.testing.assert_allclose(got.scores, engine, atol=1e-4, rtol=0)
            tau = kendall_tau(got.scores.tolist(), reference(QUERY, candidates).scores.tolist())
            assert tau >= INT8_TAU
    assert "Triton serves version 2, the newest" in capsys.readouterr().out


def test_compare_says_scores_order_and_speed(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_groups(tmp_path / f"{name}.jsonl", seed=seed, name=name) for seed, name in ((3, "q"), (4, "r"))]
    flags = ["--data", *map(str, files), "--model_repository", str(repository)]
    assert versions.main(["compare", "1", "2", *flags]) == 0
    read, first, second = capsys.readouterr().out.splitlines()
    assert read.startswith("8 queries of ")
    assert re.fullmatch(r"1: fp32, nDCG@10 0\.\d{4}, [\d.e+]+ rows/s", first)
    assert re.match(r"2: int8, nDCG@10 0\.\d{4}, .*; against 1: scores within 0\.\d+, Kendall's tau [01]\.", second)
    assert versions.main(["compare", "1", "7", *flags]) == 2
    assert "student/7: no such version" in capsys.readouterr().err


def test_every_version_is_warm_before_it_is_timed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock that only engines move: a request takes one second, and the first of a version half a second more."""
    now = 0.0
    opened = versions._open

    def open_cold(place: Place, version: int) -> Runner:
        engine, first_run_s = opened(place, version), 0.5

        def run(*arguments: Any) -> FloatArray:
            nonlocal now, first_run_s
            now, first_run_s = now + 1 + first_run_s, 0.0
            return engine(*arguments)

        return run

    monkeypatch.setattr(versions, "_open", open_cold)
    monkeypatch.setattr("engines.versions.time.perf_counter", lambda: now)
    data = write_groups(tmp_path / "dev.jsonl", queries=2)
    assert versions.main(["compare", "1", "2", "--data", str(data), "--model_repository", str(repository)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(", speed 1.00x")


def test_list_marks_what_is_served(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model_repository", str(repository)]
    for chosen, served in (("1", 1), ("latest", 2)):
        assert versions.main(["use", chosen, *where]) == 0
        assert served_version(repository / "student") == served
        capsys.readouterr()
        assert versions.main(["list", *where]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.endswith(", served") for line in lines] == [served == 1, served == 2]
    assert lines[1].startswith("2: openvino, int8, ")


def test_versions_beside_each_other(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = ["--model_repository", str(repository)]
    files = [*repository.rglob("config.pbtxt")]
    assert versions.main(["use", "latest", *where]) == 0
    before = [read_config(path) for path in files]
    assert versions.main(["use", "1", "--beside", "2", *where]) == 0
    assert "serves version 1, and version 2 as ranker_2" in capfd.readouterr().out
    assert versions.main(["list", *where]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert (lines[0].endswith(", served"), lines[1].endswith(", served by ranker_2")) == (True, True)
    assert (repository / "ranker_2/1").is_dir()
    assert versions.main(["use", "1", "--beside", "1", *where]) == 2
    assert versions.main(["use", "latest", "--beside", "1", *where]) == 2
    assert versions.main(["use", "latest", *where]) == 0
    assert [read_config(path) for path in files] == before
    assert not (repository / "ranker_2").exists()
    assert not [*repository.parent.glob(".*beside*")]


def test_use_refuses_what_could_not_be_served(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = repository / "student/config.pbtxt"
    manifest = repository / "student/2/manifest.json"
    before, whole = config.read_bytes(), manifest.read_text()
    assert versions.main(["use", "9", "--model_repository", str(repository)]) == 2
    assert "student/9: no such version" in capsys.readouterr().err
    manifest.write_text(json.dumps({**json.loads(whole), "encoding_hash": "0"}))
    for version in ("2", "latest"):
        assert versions.main(["use", version, "--model_repository", str(repository)]) == 2
        assert "was built for another tokenizer" in capsys.readouterr().err
    manifest.write_text(whole)
    assert versions.main(["use", "1", "--model_repository", "."]) == 2
    assert config.read_bytes() == before
    assert read_config(config).name == "student"


@pytest.fixture
def yardstick(served_checkpoint: Path, tmp_path: Path) -> Yardstick:
    encoder = PairEncoder.load(served_checkpoint)
    groups = read_groups(write_groups(tmp_path / "dev.jsonl"))
    return Yardstick.of(torch_runner(load_scorer(served_checkpoint, encoder), encoder), encoder, groups)


@pytest.fixture
def few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 may take few products only: each is quantised alone, to see what it costs."""
    all_products = OpenVino.products

    def products(self: OpenVino, model: Any) -> Products:
        found = all_products(self, model)
        few = {*sorted(found.candidates)[:FEW]}
        return Products(few, found.others | (found.candidates - few))

    monkeypatch.setattr(OpenVino, "products", products)


@pytest.mark.usefixtures("few_products")
def test_sensitive_products_are_kept_where_the_gate_would_refuse(
    repository: Path, yardstick: Yardstick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = json.loads((repository / "student/2/manifest.json").read_text())["parity"]["largest_difference"]
    monkeypatch.setitem(parity.LIMITS, "int8", Limits(score=0.02 * loss))
    graph = core().read_model(repository / "student/1/model.xml")
    path = write_groups(tmp_path / "calibration.jsonl", queries=8, seed=1, name="c")
    calibration = read_calibration([str(path)], [], PairEncoder.load(repository / "tokenizer"))
    model, int8 = quantise(OpenVino(), graph, calibration, yardstick, most_kept=FEW)
    assert 1 <= len(int8.kept) <= FEW
    assert int8.products == FEW - len(int8.kept)
    openvino.save_model(model, tmp_path / "model.xml")
    engine = PairScorer(OpenVinoEngine(tmp_path / "model.xml", "fp32", 1), Layout(*yardstick.layout), 4)
    report = yardstick.report(runner(engine), "int8")
    assert report.largest_difference < 0.03 * loss  # laid out otherwise, a number may be rounded the other way


@pytest.mark.usefixtures("few_products")
def test_a_damaged_engine_is_refused_whatever_is_kept(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine of another model's graph."""
    graph = Graph(repository / "student/1/model.xml", "fp32", TRACKED)
    monkeypatch.setattr(processors, "export_graph", lambda *_, **__: graph)
    another = tiny_bert(tmp_path / "bert", seed=1, max_pair_tokens=256, row_length=256, slots_per_row=16)
    data = write_groups(tmp_path / "dev.jsonl")
    calibration = write_groups(tmp_path / "calibration.jsonl", seed=1, name="c")
    flags = ["--checkpoint", str(another), "--data", str(data), "--engine", "openvino", "--precision", "int8"]
    flags += ["--calibration", str(calibration), "--most_kept", "1", "--model_repository", str(repository)]
    before = sorted((repository / "student").iterdir())
    assert build_engines.main(flags) == 1
    assert "refused: in int8, Kendall's tau is" in capsys.readouterr().err
    assert sorted((repository / "student").iterdir()) == before


def test_versions_are_listed_and_chosen_without_pytorch() -> None:
    """It takes seconds to load."""
    code = "import sys, engines.versions; assert not {'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_address_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["list", "--model_repository", "s3://bucket/models"]) == 2
    assert capsys.readouterr().err == "error: s3://bucket/models: this command takes a folder, not an address\n"
