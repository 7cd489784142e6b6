"""The OpenVINO engine on processors with and without units, and how its processes end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

OPENED = [("1", "fp32"), ("2", "fp32"), ("1", "bf16"), ("1", "fp16"), ("2", "bf16")]  # versions, and what was asked for
TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@pytest.mark.parametrize("units", ["all", "AVX2", "SSE41"])
def test_runs_in_is_what_the_compiled_operations_report(openvino_versions: Path, units: str) -> None:
    """On this processor with all of its units, and as on one that has fewer. One with units for bf16 cannot play that:
    there OpenVINO takes the hint and then has no softmax for it, so only float32 is seen."""
    code = f"""
from pathlib import Path
from model_repository.student.runtime.openvino_engine import OpenVinoEngine, core
student = Path({str(openvino_versions / "student")!r})
plays = {units != "all"} and "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
for version, precision in {OPENED}[: 2 if plays else None]:
    opened = OpenVinoEngine(student / version / "model.xml", precision, 1)
    print(version, precision, opened.runs_in, opened.computes_int8(), *sorted(set(opened.product_types())))
"""
    environment = {**os.environ} if units == "all" else {**os.environ, "ONEDNN_MAX_CPU_ISA": units}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) >= 2
    for version, precision, runs_in, is_int8, *types in lines:
        assert TYPES[runs_in] in types
        assert set(types) <= {TYPES[runs_in], "f32", "i8", "u8"}
        assert is_int8 == str(version == "2")
        if precision == "fp32" or units != "all":
            assert runs_in == "fp32", "there are no units for less"


def test_engines_that_end_in_any_order_leave_signals_working(openvino_versions: Path) -> None:
    """Ctrl-C in a process that has closed two engines must not be a segmentation fault."""
    code = f"""
import os, signal
from pathlib import Path
from model_repository.student.runtime.openvino_engine import OpenVinoEngine
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [OpenVinoEngine(Path({str(openvino_versions / "student/1/model.xml")!r}), "fp32", 1) for _ in range(2)]
del engines[0]
del engines[0]
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
