"""The exported graph against PyTorch, in two other runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from transformers import PreTrainedModel

from engines.builders.openvino import open_runner
from engines.graph.export import OPSET, export_graph
from engines.records import OUTPUT, Dimensions, Graph, packed
from model_repository.tokenizer.pair_encoding import INPUTS, FlatPairs, FloatArray, PairEncoder, Rows
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, write_groups
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups


class Exported(NamedTuple):
    model: PreTrainedModel
    encoder: PairEncoder
    graph: Graph
    groups: Path


@pytest.fixture(scope="module", params=[tiny_bert, tiny_roberta, tiny_llama])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("graph")
    checkpoint = request.param(directory / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    graph = export_graph(model, Dimensions.of(encoder.config), "fp32", directory / "model.onnx")
    return Exported(model, encoder, graph, write_groups(directory / "dev.jsonl"))


def encoded(exported: Exported, pairs: int) -> FlatPairs:
    return encode_groups(exported.encoder, read_groups(exported.groups))[:pairs]


def in_onnxruntime(graph: Graph, pairs: FlatPairs) -> FloatArray:
    session = onnxruntime.InferenceSession(graph.path)

    def run(rows: Rows) -> FloatArray:
        return np.asarray(session.run([OUTPUT], dict(zip(INPUTS, rows, strict=True)))[0])

    return packed(run, graph.dimensions.layout, rows_per_call=8)(pairs)


def in_openvino(graph: Graph, pairs: FlatPairs) -> FloatArray:
    return open_runner(graph, "fp32", rows_per_call=8)(pairs)


@pytest.mark.parametrize("run", [in_onnxruntime, in_openvino])
@pytest.mark.parametrize("count", [1, 7, 24])  # one row, some, many: the graph was traced with two
def test_graph_scores_as_pytorch(exported: Exported, run: Callable[[Graph, FlatPairs], FloatArray], count: int) -> None:
    """To 1e-5: both compute in float32, by other kernels."""
    pairs = encoded(exported, count)
    expected = PackedScorer(exported.model).score(exported.encoder.pack(pairs))
    np.testing.assert_allclose(run(exported.graph, pairs), expected, atol=1e-5, rtol=0)


def test_graph_has_the_packed_layout(exported: Exported) -> None:
    """Five int32 inputs, also where the model has no token types; float32 scores; rows alone are free."""
    graph = onnx.load(exported.graph.path, load_external_data=False)
    shapes = {
        port.name: [side.dim_value or side.dim_param for side in port.type.tensor_type.shape.dim]
        for port in (*graph.graph.input, *graph.graph.output)
    }
    widths = exported.graph.dimensions
    assert shapes == {name: ["rows", widths.width(name)] for name in (*INPUTS, OUTPUT)}
    assert {port.type.tensor_type.elem_type for port in graph.graph.input} == {onnx.TensorProto.INT32}
    assert graph.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [OPSET]


def test_chunks_change_no_score(exported: Exported) -> None:
    pairs = encoded(exported, 24)
    count = len(exported.encoder.pack(pairs).input_ids)
    assert count % 6, "the last chunk must be a short one"
    whole, in_parts = (open_runner(exported.graph, "fp32", rows)(pairs) for rows in (count, 6))
    np.testing.assert_allclose(in_parts, whole, atol=1e-5, rtol=0)
