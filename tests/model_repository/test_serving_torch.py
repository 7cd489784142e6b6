"""The torch engine through the running ensemble, against PyTorch in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client import RankingClient
from engines import versions
from tests.support.requests import TOLERANCES, answer, documents, every_length
from tests.support.servers import Reference, build, running


def test_scores_are_those_of_pytorch(served_checkpoint: Path, reference: Reference, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    for precision in ("fp32", "bf16"):
        build(served_checkpoint, repository, precision, engine="torch")
    assert versions.main(["use", "1", "--beside", "2", "--model_repository", str(repository)]) == 0
    assert {path.name for path in (repository / "student/1").iterdir()} == {"manifest.json", "model.pt2", "model.py"}
    small = [documents(count, seed=count) for count in (1, 10)]
    requests = [(query, candidates) for candidates in small for query in ("garden bridge", "中文 🚀")]
    large = [("garden bridge", every_length(reference)), ("中文 🚀", documents(1000, longest=30))]
    with running(repository, tmp_path / "log") as server:
        assert server.log.read_text().count("on the processor, eager") == 2
        for model, precision in (("ranker", "fp32"), ("ranker_2", "bf16")):
            with RankingClient(server.url, model) as client:
                # bfloat16 is slow on processors without units for it.
                for query, candidates in [*requests, *(large if precision == "fp32" else [])]:
                    got, expected = answer(client, query, candidates), reference(query, candidates)
                    np.testing.assert_allclose(got.scores, expected.scores, atol=TOLERANCES[precision], rtol=0)
                    assert got.truncated == expected.truncated
