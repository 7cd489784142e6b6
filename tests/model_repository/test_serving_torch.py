"""The torch engine through the running ensemble, against PyTorch in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client import RankingClient
from model_repository.tokenizer.pair_encoding import Document
from tests.support.requests import TOLERANCES, answer, documents
from tests.support.servers import Reference, build, running


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_are_those_of_pytorch(
    served_checkpoint: Path, reference: Reference, tmp_path: Path, precision: str
) -> None:
    repository = build(served_checkpoint, tmp_path / "model_repository", precision, engine="torch")
    version = repository / "student/1"
    assert {path.name for path in version.iterdir()} == {"manifest.json", "model.pt2", "model.py"}
    every_length = [
        Document(title="", summary="river " * tokens) for tokens in range(reference.encoder.config.row_length)
    ]
    small = [documents(count, seed=count) for count in (1, 10)]
    requests = [(query, candidates) for candidates in small for query in ("garden bridge", "中文 🚀")]
    requests.append(("garden bridge", every_length))
    if precision == "fp32":  # bfloat16 is slow on processors without units for it
        requests.append(("中文 🚀", documents(1000, longest=30)))
    with running(repository, tmp_path / "log") as server, RankingClient(server.url) as client:
        assert "on the processor, eager" in server.log.read_text()
        for query, candidates in requests:
            got, expected = answer(client, query, candidates), reference(query, candidates)
            np.testing.assert_allclose(got.scores, expected.scores, atol=TOLERANCES[precision], rtol=0)
            assert got.truncated == expected.truncated
