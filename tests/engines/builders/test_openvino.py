"""The OpenVINO engine as it lies on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest

from engines.builders.openvino import OpenVino
from engines.builders.processors import CpuWish, build
from engines.graph.export import export_graph
from engines.parity import Yardstick, torch_runner
from engines.records import INPUTS, OUTPUT, Dimensions
from model_repository.student.openvino_engine import HINTS, core
from model_repository.tokenizer.pair_encoding import PairEncoder
from tests import ROOT
from tests.support.checkpoints import tiny_roberta, write_groups
from trainer.checkpoints.load import load_scorer
from trainer.data.records import read_groups


def test_engine_on_disk_has_the_wire_names(tmp_path: Path) -> None:
    checkpoint = tiny_roberta(tmp_path / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    graph = export_graph(model, Dimensions.of(encoder.config), "fp32", tmp_path / "graph.onnx", any_length=True)
    groups = read_groups(write_groups(tmp_path / "dev.jsonl", documents=16))
    wish = CpuWish("fp32", rows_per_call=3, calibration=None, most_kept=1)
    built = build(OpenVino(), graph, wish, Yardstick.of(torch_runner(model), encoder, groups), tmp_path)
    assert [path.name for path in built.files] == ["model.xml", "model.bin"]

    opened = core().read_model(built.files[0])
    assert [port.get_names() for port in opened.inputs] == [{name} for name in INPUTS]
    assert {port.get_element_type() for port in opened.inputs} == {openvino.Type.i32}
    assert [port.get_names() for port in opened.outputs] == [{OUTPUT}]


def _product() -> openvino.Model:
    """Rows times a matrix, with the names of a student's output."""
    operators = openvino.opset13
    rows = operators.parameter([-1, 4], np.float32)
    product = operators.matmul(rows, np.ones((4, 4), np.float32), False, False)
    rows.output(0).get_tensor().set_names({"rows"})
    product.output(0).get_tensor().set_names({OUTPUT})
    return openvino.Model([product], [rows], "product")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_runs_in_is_what_a_compiled_model_reports(precision: str) -> None:
    compiled = core().compile_model(_product(), "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == HINTS[OpenVino().runs_in(precision)]


def test_engines_that_end_in_any_order_leave_signals_working(tmp_path: Path) -> None:
    """Ctrl-C in a process that has closed two engines must not be a segmentation fault."""
    path = tmp_path / "product.xml"
    openvino.save_model(_product(), path)
    code = f"""
import os, signal
from pathlib import Path
from model_repository.student.openvino_engine import OpenVinoEngine
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [OpenVinoEngine(Path({str(path)!r}), "fp32", 1) for _ in range(2)]
del engines[0]
del engines[0]
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
