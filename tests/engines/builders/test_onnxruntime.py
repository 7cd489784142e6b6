"""ONNX Runtime's engines: int8 as whole numbers throughout, and both precisions served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from client import RankingClient
from client import compare as client_compare
from engines import versions
from engines.builders.onnxruntime import MICROSOFT, PRODUCT, Int8Array, fitted_to_16_bits
from engines.records import runner
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.student.runtime.onnxruntime_engine import OnnxRuntimeEngine
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import FloatArray, PairEncoder
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
        assert has_int8_units() or largest_sum(weights) <= 128
        assert np.abs(weights.astype(int)).max() > 64, "more than half of the range"
        assert node.input[6] in constants, "the bias is added in the product"


def largest_sum(weights_KN: Int8Array) -> int:
    """Of two weights of one sign that a processor without units for int8 adds up in 16 bits."""
    even = weights_KN[: len(weights_KN) // 2 * 2].astype(int).reshape(-1, 2, weights_KN.shape[1])
    return max(int((sign * even).clip(min=0).sum(axis=1).max(initial=0)) for sign in (1, -1))


def product(activations_MK: NDArray[np.uint8], weights_KN: Int8Array) -> FloatArray:
    """ONNX Runtime's product of whole numbers, with scales of 1."""
    tensors = {"weights": weights_KN, "one": np.float32(1), "ones": np.ones(weights_KN.shape[1], np.float32)}
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    node = helper.make_node(PRODUCT, ["activations", "weights", "one", "ones"], ["result"], domain=MICROSOFT)
    ports = [
        helper.make_tensor_value_info("activations", TensorProto.UINT8, [None, len(weights_KN)]),
        helper.make_tensor_value_info("result", TensorProto.FLOAT, [None, weights_KN.shape[1]]),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph([node], "product", ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, {"activations": activations_MK})[0]
    return result


WEIGHTS = st.tuples(st.integers(1, 70), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.one_of(st.sampled_from([-128, -127, 127]), st.integers(-128, 127)))
)


@given(WEIGHTS)
def test_sums_of_fitted_weights_are_not_cut_off_and_lose_less_than_half_of_the_range(weights_KN: Int8Array) -> None:
    fitted_KN, factors_N = fitted_to_16_bits(weights_KN)
    assert largest_sum(fitted_KN) <= 128
    for rows in (1, 3, 17):
        activations_MK = np.full((rows, len(weights_KN)), 255, np.uint8)
        activations_MK[-1] = (weights_KN[:, 0] > 0) * 255  # the most that the first column can reach
        exact = activations_MK.astype(np.int64) @ fitted_KN.astype(np.int64)
        np.testing.assert_array_equal(product(activations_MK, fitted_KN), exact.astype(np.float32))
    lost_N, halved_N = (
        np.square(weights - weights_KN).sum(axis=0)
        for weights in (fitted_KN * factors_N, np.rint(weights_KN / 2) * 2.0)
    )
    assert (lost_N <= halved_N + 1e-3).all()


def test_weights_that_fit_are_left_as_they_are() -> None:
    weights_KN = np.array([[127, -128, 64], [1, 0, 64], [-127, 128 - 1, -64], [0, 1, -64], [127, 127, 127]], np.int8)
    fitted_KN, factors_N = fitted_to_16_bits(weights_KN)
    np.testing.assert_array_equal(fitted_KN, weights_KN)
    assert (factors_N == 1).all()


@pytest.mark.skipif(has_int8_units(), reason="adds up in 32 bits")
def test_without_units_sums_of_other_weights_are_cut_off() -> None:
    activations, weights = np.full((1, 4), 255, np.uint8), np.full((4, 8), 127, np.int8)
    assert (product(activations, weights) < 4 * 255 * 127).all()


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
