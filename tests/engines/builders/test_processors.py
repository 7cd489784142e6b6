"""Engines for processors score as PyTorch, for each kind of model and by each library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.builders import builder_for, processors
from engines.job import BuildArguments, Job
from tests.support.checkpoints import tiny_bert, tiny_llama, write_groups
from tests.support.exports import exported_once
from tests.support.rerankers import tiny_late
from trainer.checkpoints.load import PackedScorer
from trainer.data.pairs import encode_groups
from trainer.data.records import JudgedDocument, read_groups

TOLERANCE = 1e-5  # float32 by other kernels, chosen by the shape of a call
ODD = [JudgedDocument("empty", "", "", None, 0), JudgedDocument("cut", "river", "bridge " * 60, None, 0)]
# In a layer: of BERT only keys and values are of all tokens in the last one, unless the head reads all of them.
PRODUCTS = {tiny_bert: 2, tiny_late: 6, tiny_llama: 7}


@pytest.mark.parametrize("make", PRODUCTS)
def test_a_built_engine_scores_as_pytorch(make: Callable[..., Path], tmp_path: Path) -> None:
    """Pairs of one request, and pairs of requests of one document each; int8 would take the products of all tokens."""
    checkpoint, data = make(tmp_path / "checkpoint", layers=1), write_groups(tmp_path / "dev.jsonl", documents=16)
    arguments = BuildArguments(str(checkpoint), [str(data)], "openvino", "fp32", rows_per_call=3)
    job = Job.of(arguments, tmp_path / "job")
    job.directory.mkdir()
    group = read_groups(data)[0]
    pairs = encode_groups(job.encoder, [replace(group, documents=(*group.documents, *ODD))])
    assert pairs.truncated.any()
    expected = PackedScorer(job.model).score(job.encoder.pack(pairs))
    with exported_once(tmp_path / "graph"):
        for engine in ("openvino", "onnxruntime"):
            builder: Any = builder_for(replace(arguments, engine=engine))
            assert len(builder.products(builder.read(processors.exported(job))).candidates) == PRODUCTS[make]
            run = builder.build(job).run
            np.testing.assert_allclose(run(pairs), expected, atol=TOLERANCE, rtol=0)
            alone = np.concatenate([run(pairs[at : at + 1]) for at in range(len(pairs))])
            np.testing.assert_allclose(alone, expected, atol=TOLERANCE, rtol=0)


def test_a_graph_of_an_export_that_failed_is_not_taken_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(model: Any, dimensions: Any, precision: str, path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"a part")
        raise RuntimeError("no memory")

    monkeypatch.setattr(processors, "export_graph", export)
    job: Any = SimpleNamespace(shared=tmp_path, model=None, dimensions=None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            processors.exported(job)
    assert not [*tmp_path.iterdir()]
