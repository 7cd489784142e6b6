"""The exported program as the server runs it, against PyTorch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from engines.builders import builder_for
from engines.job import BuildArguments, Job
from engines.records import BuiltEngine, EngineError
from model_repository.student.runtime.graphs import EngineStartError
from model_repository.student.runtime.torch_engine import TorchEngine, sizes
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PackedBatch, chunks, unpack
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_modernbert, write_groups
from tests.support.rerankers import tiny_late
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import read_groups

ROWS = 5
# PyTorch's compiler imports what PyTorch has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
LIMITS = {"fp32": 1e-5, "bf16": 0.1, "fp16": 0.01}


class Built(NamedTuple):
    engine: BuiltEngine
    pairs: FlatPairs
    batch: PackedBatch  # the same pairs
    expected: FloatArray  # [N]


def arguments(checkpoint: Path, data: Path, precision: str, rows: int) -> BuildArguments:
    return BuildArguments(str(checkpoint), [str(data)], "torch", precision, rows_per_call=rows, torch_compile="never")


def built(maker: Callable[..., Path], precision: str, directory: Path, layers: int = 1) -> Built:
    data = write_groups(directory / "dev.jsonl", queries=1, documents=40)
    wanted = arguments(maker(directory / "checkpoint", layers=layers), data, precision, ROWS)
    job = Job.of(wanted, directory)
    pairs = encode_groups(job.encoder, read_groups(data))
    batch = job.encoder.pack(pairs)
    return Built(builder_for(wanted).build(job), pairs, batch, PackedScorer(job.model).score(batch))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(tiny_bert, "fp32", tmp_path_factory.mktemp("torch"))


@pytest.mark.parametrize(
    ("maker", "precision"),
    [(tiny_bert, "bf16"), (tiny_modernbert, "fp32"), (tiny_late, "fp16"), (tiny_llama, "fp32"), (tiny_llama, "fp16")],
)
def test_program_scores_as_the_model(maker: Callable[..., Path], precision: str, tmp_path: Path) -> None:
    got = built(maker, precision, tmp_path, layers=2 if maker is tiny_modernbert else 1)  # whose second sees a window
    assert [path.name for path in got.engine.files] == ["model.pt2"]
    assert (got.engine.runs_in, got.engine.judged) == (precision, "the engine")
    difference = np.abs(got.engine.run(got.pairs) - got.expected).max()
    assert difference < LIMITS[precision]
    assert (difference > 1e-5) == (precision != "fp32"), "half precision must really be computed in"


def test_pairs_of_any_number(bert: Built) -> None:
    """Traced with two rows, run in chunks of five."""
    rows = len(bert.batch.input_ids)
    assert rows % ROWS and rows > 2 * ROWS, rows
    np.testing.assert_allclose(bert.engine.run(bert.pairs), bert.expected, atol=1e-5, rtol=0)
    for count in (1, 2, 3, 7):
        np.testing.assert_allclose(bert.engine.run(bert.pairs[:count]), bert.expected[:count], atol=1e-5, rtol=0)


def test_fixed_sizes_give_the_same_scores(bert: Built) -> None:
    """Each count of rows goes to the next size, beside what an earlier call left there."""
    fixed = TorchEngine(bert.engine.files[0], 5, compiled="always", backend="eager")
    assert "compiled for 1, 2, 4, 5 rows" in fixed.describe()
    rows, eager = bert.batch.rows, TorchEngine(bert.engine.files[0], 5, compiled="never")
    for start in range(len(rows[0])):
        for count in range(1, 6):
            some = tuple(array[start:][:count] for array in rows)
            np.testing.assert_allclose(fixed.infer(some), eager.infer(some), atol=1e-5, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled for a GPU anyway")
def test_compiled_scores_as_pytorch(bert: Built) -> None:
    with torch._inductor.config.patch({"cpp.simdlen": 1}):  # vector instructions take most of the compiler's time
        engine = TorchEngine(bert.engine.files[0], 1, compiled="always")
    scores_RS = np.concatenate([engine.infer(row) for row in chunks(bert.batch.rows, 1)])
    np.testing.assert_allclose(unpack(scores_RS, bert.batch.slots), bert.expected, atol=1e-5, rtol=0)
    assert "eager" in TorchEngine(bert.engine.files[0], 1, compiled="gpu").describe()


def test_compilation_that_fails_keeps_the_engine_from_starting(bert: Built) -> None:
    broken = {"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(broken),
        pytest.raises(EngineStartError, match=r"cannot be compiled here: .*--torch_compile never"),
    ):
        TorchEngine(bert.engine.files[0], 1, compiled="always")


def test_an_older_torch_is_told_what_it_lacks(bert: Built, tmp_path: Path) -> None:
    manifest = {"versions": {"torch": "99.1.0+cpu"}, "rows_per_call": 1, "torch_compile": "gpu"}
    with pytest.raises(EngineStartError, match=r"was built by torch 99\.1\.0\+cpu, and torch .* is here"):
        TorchEngine.load(tmp_path, manifest, instances=1)


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_sizes(rows: int, expected: list[int]) -> None:
    assert sizes(rows) == expected


def test_more_rows_than_pytorch_compiles_for_are_refused() -> None:
    checkpoint = data = Path("not read")
    builder_for(arguments(checkpoint, data, "fp32", rows=128))
    assert len(sizes(128)) == torch._dynamo.config.recompile_limit
    with pytest.raises(EngineError, match="--rows_per_call 129: --engine torch takes at most 128"):
        builder_for(arguments(checkpoint, data, "fp32", rows=129))
