"""The OpenVINO engine as it lies on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.graph import export_graph
from engines.openvino import CpuWish, build, runs_in
from engines.parity import Yardstick, torch_runner
from engines.records import INPUTS, OUTPUT, Dimensions
from model_repository.student.packed_engine import HINTS, PackedEngine, core, merge, unmerge
from model_repository.tokenizer.pair_encoding import PairEncoder, unpack
from tests.checkpoints import tiny_llama, tiny_roberta, write_groups
from trainer.collate import encode_group
from trainer.data import read_groups
from trainer.models import PackedScorer, load_scorer

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("make", [tiny_llama, tiny_roberta])
def test_engine_on_disk_has_the_wire_names_and_scores_as_pytorch(make: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "checkpoint")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    graph = export_graph(model, Dimensions.of(encoder.config), "fp32", tmp_path / "model.onnx", any_length=True)
    groups = read_groups(write_groups(tmp_path / "dev.jsonl", documents=16))
    wish = CpuWish("fp32", rows_per_call=3, calibration=None, most_kept=1)
    built = build(graph, wish, Yardstick.of(torch_runner(model), encoder, groups), tmp_path)
    assert [path.name for path in built.files] == ["model.xml", "model.bin"]

    opened = core().read_model(built.files[0])
    assert [port.get_names() for port in opened.inputs] == [{name} for name in INPUTS]
    assert {port.get_element_type() for port in opened.inputs} == {openvino.Type.i32}
    assert [port.get_names() for port in opened.outputs] == [{OUTPUT}]

    batch = encoder.pack(encode_group(encoder, groups[0].query, groups[0].documents))
    scores = unpack(built.run(batch), batch.slots)
    np.testing.assert_allclose(scores, PackedScorer(model).score(batch), atol=1e-5, rtol=0)

    # Requests of one document each, a row for each: laid together, three at a time.
    alone = [encoder.pack(encode_group(encoder, groups[0].query, [one])) for one in groups[0].documents]
    joined = tuple(np.concatenate(arrays) for arrays in zip(*(batch[:-1] for batch in alone), strict=True))
    together = PackedEngine(built.files[0], "fp32", rows_per_call=3).score(joined)
    np.testing.assert_allclose(together[:, 0], scores, atol=1e-5, rtol=0)


ROW_LENGTH, SLOTS = 64, 4


@given(st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=SLOTS), min_size=1, max_size=9))
def test_new_rows_hold_every_pair_once(pairs: list[list[int]]) -> None:
    """Of rows of pairs, by their lengths; a token's id says which pair's it is."""
    arrays = np.zeros((4, len(pairs), ROW_LENGTH), np.int32)
    pools = np.zeros((len(pairs), SLOTS), np.int32)
    for row, lengths in enumerate(pairs):
        ends = np.cumsum(lengths)
        pools[row, : len(lengths)] = ends - lengths
        for slot, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            arrays[:, row, end - length : end] = [[10 * row + slot + 1], [1], [7], [slot + 1]]
    merged = merge((*arrays, pools))
    ids, _, _, segments, starts = merged.rows
    assert segments.size <= len(pairs) * ROW_LENGTH
    assert np.count_nonzero(segments) == np.count_nonzero(ids) == sum(map(sum, pairs))
    scores = unmerge(np.take_along_axis(ids, starts, axis=1).astype(np.float32), merged, len(pairs))
    for row, lengths in enumerate(pairs):  # an engine reads each pair's own tokens at its pool
        read = [10 * row + slot + 1 for slot in range(len(lengths))]
        assert scores[row].tolist() == read + [0] * (SLOTS - len(lengths))
    for place in merged.new:
        same = segments[place.row] == place.slot + 1
        assert same.sum() == place.size
        assert len({*ids[place.row][same].tolist()}) == 1


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
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == HINTS[runs_in(precision)]


def test_engines_that_end_in_any_order_leave_signals_working(tmp_path: Path) -> None:
    """Ctrl-C in a process that has closed two engines must not be a segmentation fault."""
    path = tmp_path / "product.xml"
    openvino.save_model(_product(), path)
    code = f"""
import os, signal
from pathlib import Path
from model_repository.student.packed_engine import PackedEngine
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
engines = [PackedEngine(Path({str(path)!r}), "fp32", 1) for _ in range(2)]
del engines[0]
del engines[0]
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
