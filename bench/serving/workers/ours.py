"""Our own: Triton with the built repository, over gRPC by client.rank, a connection for each caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.children import free_ports, healthy, started, triton
from bench.serving.cells import Option
from bench.serving.load import LoadError, Score
from bench.serving.worker import main
from client import RankingClient

TIMEOUT_S = 120
PACKAGES = ("nvidia-pytriton", "openvino", "onnxruntime", "tokenizers", "tritonclient")


class OursSystem:
    def __init__(self, url: str) -> None:
        self._url = url
        self.versions = {name: version(name) for name in PACKAGES}

    def use(self, option: Option) -> None:
        if option:
            raise LoadError("a running server takes no other settings")

    def connect(self) -> Score:
        client = RankingClient(self._url, timeout_s=TIMEOUT_S)

        def score(query: str, documents: tuple[str, ...]) -> list[float]:
            return client.score(query, documents)

        return score


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[OursSystem]:
    """``repository`` is built; ``directory`` is free for the server's log."""
    ports = free_ports("http", "grpc", "metrics")
    directory = Path(setup["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    with started(triton(setup["repository"], ports), directory / "server.log") as server:
        server.wait_until(lambda: healthy(ports["http"]))
        yield OursSystem(f"127.0.0.1:{ports['grpc']}")


if __name__ == "__main__":
    main(opened)
