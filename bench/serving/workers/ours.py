"""Our own: Triton with the built repository, over gRPC by client.rank, a connection for each caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.children import serving
from bench.serving.load import Score
from bench.serving.worker import Worker, main
from client import RankingClient

TIMEOUT_S = 120
PACKAGES = ("nvidia-pytriton", "openvino", "onnxruntime", "tokenizers", "tritonclient")


class OursWorker(Worker):
    def __init__(self, url: str) -> None:
        self._url = url
        self.versions = {name: version(name) for name in PACKAGES}

    def connect(self) -> Score:
        return RankingClient(self._url, timeout_s=TIMEOUT_S).score


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[OursWorker]:
    """``repository`` is built; the server's log is beside it."""
    repository = Path(setup["repository"])
    with serving(repository, repository.with_name(f"{repository.name}.log")) as (_, ports):
        yield OursWorker(f"127.0.0.1:{ports['grpc']}")


if __name__ == "__main__":
    main(opened)
