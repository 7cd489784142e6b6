"""The OpenVINO engine as it lies on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest

from engines.arguments import BuildArguments
from engines.builders.openvino import OpenVino
from engines.job import Job
from engines.records import OUTPUT
from model_repository.student.runtime.openvino_engine import core
from model_repository.tokenizer.pair_encoding import INPUTS
from tests import ROOT
from tests.support.checkpoints import tiny_roberta, write_groups


def test_engine_on_disk_has_the_wire_names(tmp_path: Path) -> None:
    checkpoint, data = tiny_roberta(tmp_path / "checkpoint"), write_groups(tmp_path / "dev.jsonl", documents=16)
    arguments = BuildArguments(str(checkpoint), [str(data)], engine="openvino", precision="fp32", rows_per_call=3)
    built = OpenVino().build(Job.of(arguments, tmp_path))
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


@pytest.mark.parametrize("units", ["all", "AVX2", "SSE41"])
def test_runs_in_is_what_the_compiled_operations_report(openvino_versions: Path, units: str) -> None:
    """On this processor with all of its units, and as on one that has fewer.

    The library asks the processor itself for units of bf16 and fp16, and then cannot do without them.
    """
    fewer = units != "all"
    lower = [] if fewer and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ["bf16", "fp16"]
    asked = [("1", "fp32"), *(("1", precision) for precision in lower), ("2", lower[0] if lower else "fp32")]
    code = f"""
from pathlib import Path
from engines.builders.openvino import OpenVino
student = Path({str(openvino_versions / "student")!r})
for version, precision in {asked!r}:
    opened = OpenVino().opens(student / version / "model.xml", precision, 1)
    operations = [operation.get_rt_info() for operation in opened.compiled.get_runtime_model().get_ops()]
    products = [info for info in operations if info["layerType"].get() == "FullyConnected"]
    types = {{info["runtimePrecision"].get() for info in products}}
    print(precision, opened.runs_in, OpenVino().computes_int8(opened), *sorted(types))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": units} if fewer else {**os.environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [precision for _, precision in asked], done.stderr
    names = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
    for (_, runs_in, is_int8, *types), (version, _) in zip(lines, asked, strict=True):
        assert names[runs_in] in types
        assert set(types) <= {names[runs_in], "f32", "i8", "u8"}
        assert is_int8 == str(version == "2")
    assert lines[0][1] == "fp32"
    if fewer:
        assert {line[1] for line in lines} == {"fp32"}, "there are no units for less"


def test_engines_that_end_in_any_order_leave_signals_working(tmp_path: Path) -> None:
    """Ctrl-C in a process that has closed two engines must not be a segmentation fault."""
    path = tmp_path / "product.xml"
    openvino.save_model(_product(), path)
    code = f"""
import os, signal
from pathlib import Path
from model_repository.student.runtime.openvino_engine import OpenVinoEngine
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [OpenVinoEngine(Path({str(path)!r}), "fp32", 1) for _ in range(2)]
del engines[0]
del engines[0]
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
