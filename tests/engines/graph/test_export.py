"""The exported graph against PyTorch, in two other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel

from engines.graph.export import OPSET, export_graph
from engines.records import OUTPUT, Dimensions, Graph, packed
from model_repository.student.runtime.graphs import ProcessorGraph
from model_repository.student.runtime.onnxruntime_engine import OnnxRuntimeEngine
from model_repository.student.runtime.openvino_engine import OpenVinoEngine
from model_repository.tokenizer.pair_encoding import INPUTS, PairEncoder
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_modernbert, tiny_roberta, write_groups
from tests.support.rerankers import tiny_gte
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups


class Exported(NamedTuple):
    model: PreTrainedModel
    encoder: PairEncoder
    graph: Graph
    groups: Path


@pytest.fixture(scope="module", params=[tiny_bert, tiny_roberta, tiny_modernbert, tiny_gte, tiny_llama])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    directory = tmp_path_factory.mktemp("graph")
    checkpoint = request.param(directory / "checkpoint", layers=2 if request.param is tiny_modernbert else 1)
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    graph = export_graph(model, Dimensions.of(encoder.config), "fp32", directory / "model.onnx")
    return Exported(model, encoder, graph, write_groups(directory / "dev.jsonl"))


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_graph_scores_as_pytorch(exported: Exported, engine: type[ProcessorGraph]) -> None:
    """To 1e-5: both compute in float32, by other kernels. One row, some, many, since the graph was traced with two;
    and in chunks, of which the last is a short one."""
    opened, layout = engine(exported.graph.path, "fp32", 1), exported.graph.dimensions.layout
    pairs = encode_groups(exported.encoder, read_groups(exported.groups))
    rows = len(exported.encoder.pack(pairs).input_ids)
    assert rows % 6 and rows > 6
    for count, rows_per_call in ((1, 8), (7, 8), (24, 8), (24, rows), (24, 6)):
        expected = PackedScorer(exported.model).score(exported.encoder.pack(pairs[:count]))
        scores = packed(opened.infer, layout, rows_per_call)(pairs[:count])
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)


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
