"""ONNX Runtime's engines: int8 as whole numbers throughout, and both precisions served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from client import RankingClient
from client import compare as client_compare
from engines import versions
from engines.builders.onnxruntime import PRODUCT
from engines.records import runner
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.student.runtime.onnxruntime_engine import OnnxRuntimeEngine
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import write_groups
from tests.support.requests import QUERY, answer, documents, every_length
from tests.support.servers import INT8_PRODUCTS, INT8_RECORD, INT8_TAU, Reference, running
from trainer.measures.metrics import kendall_tau


@pytest.fixture
def repository(onnxruntime_versions: Path) -> Path:
    return onnxruntime_versions


def test_a_version_is_what_its_manifest_says(repository: Path) -> None:
    files = {path.name for path in (repository / "student/2").iterdir()}
    assert files == {"manifest.json", "model.onnx", "model.onnx.data", "model.py"}
    manifest = json.loads((repository / "student/2/manifest.json").read_text())
    assert (manifest["engine"], manifest["runs_in"], manifest["cpu"]["rest_in"]) == ("onnxruntime", "int8", "fp32")
    assert manifest["cpu"]["int8"] == INT8_RECORD


def test_int8_products_take_whole_numbers_that_no_processor_cuts_off(repository: Path) -> None:
    graph = onnx.load(repository / "student/2/model.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == PRODUCT]
    assert len(products) == INT8_PRODUCTS
    for node in products:
        weights, zero = constants[node.input[1]], constants[node.input[4]]
        assert (weights.dtype, zero.dtype) == (np.int8, np.uint8)
        assert (int(np.abs(weights.astype(int)).max()) == 64) != has_int8_units()
        assert node.input[6] in constants, "the bias is added in the product"


def test_both_precisions_are_served_beside_each_other(
    repository: Path, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 to 1,000 documents, of one token to a full row, of every script."""
    requests = [documents(1, seed=1), documents(10, seed=10), documents(1000, longest=60), every_length(reference)]
    encoder = PairEncoder.load(repository / "tokenizer")
    run = runner(PairScorer.load(repository / "student/2", OnnxRuntimeEngine))
    assert versions.main(["use", "1", "--beside", "2", "--model_repository", str(repository)]) == 0
    with running(repository, tmp_path / "log") as server:
        with RankingClient(server.url) as client:
            for candidates in requests:
                expected = reference(QUERY, candidates).scores
                np.testing.assert_allclose(answer(client, QUERY, candidates).scores, expected, atol=1e-4, rtol=0)
        with RankingClient(server.url, model="ranker_2") as client:
            for candidates in requests:
                got = answer(client, QUERY, candidates).scores
                alone = run(encoder.encode(QUERY, candidates))
                np.testing.assert_allclose(got, alone, atol=1e-4, rtol=0)
                assert kendall_tau(got.tolist(), reference(QUERY, candidates).scores.tolist()) >= INT8_TAU
        file = tmp_path / "documents.jsonl"
        file.write_text("".join(json.dumps({"title": each.title}) + "\n" for each in requests[1]))
        sides = ["--left", f"@{server.url}", "--right", f"ranker_2@{server.url}"]
        assert client_compare.main(["--query", QUERY, *sides, str(file), "--format", "table"]) == 0
        assert "ranker_2" in capsys.readouterr().out.splitlines()[1]
    assert server.log.read_text().count("ONNX Runtime ") == 2


def test_versions_are_compared(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_groups(tmp_path / "dev.jsonl", seed=3)
    assert versions.main(["compare", "1", "2", "--data", str(data), "--model_repository", str(repository)]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1: fp32, nDCG@10 0.")
    assert second.startswith("2: int8, nDCG@10 0.")
