"""Infinity's server over HTTP, ``/rerank`` with raw scores; every caller keeps its connection open.

The batch size is a flag of the server: each one that is tried is a server of its own.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.children import free_ports, healthy, started
from bench.serving.load import LoadError, Score
from bench.serving.worker import Worker, main

TIMEOUT_S = 120


class InfinityWorker(Worker):
    def __init__(self, port: int) -> None:
        self._port = port
        self.versions = {name: version(name) for name in ("infinity_emb", "torch", "transformers", "onnxruntime")}

    def connect(self) -> Score:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

        def score(query: str, documents: tuple[str, ...]) -> list[float]:
            body = {"model": "student", "query": query, "documents": documents, "raw_scores": True}
            connection.request("POST", "/rerank", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != http.HTTPStatus.OK:
                raise LoadError(f"HTTP {response.status}: {answer[:200].decode(errors='replace')}")
            scores = {each["index"]: each["relevance_score"] for each in json.loads(answer)["results"]}
            return [scores[place] for place in range(len(documents))]

        return score


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[InfinityWorker]:
    """``engine`` torch or optimum; ``batch_size``; a copy of the checkpoint and the log are kept in ``made``."""
    made = Path(setup["made"])
    model = made / f"infinity-{setup['engine']}-{setup['batch_size']}"
    shutil.copytree(setup["checkpoint"], model, dirs_exist_ok=True)
    if setup["engine"] == "optimum":  # finds a file at the top of the working directory only
        shutil.copyfile(made / "exported-onnx" / "onnx" / "model.onnx", model / "model.onnx")
    port = free_ports("http")["http"]
    command = [str(Path(sys.executable).with_name("infinity_emb")), "v2", "--model-id", ".", "--engine",
               setup["engine"], "--device", "cpu", "--host", "127.0.0.1", "--port", str(port),
               "--served-model-name", "student", "--batch-size", str(setup["batch_size"]), "--no-bettertransformer",
               "--log-level", "error"]  # fmt: skip
    with started(command, model / "server.log", cwd=model) as server:
        server.wait_until(lambda: healthy(port, "/health"))
        yield InfinityWorker(port)


if __name__ == "__main__":
    main(opened)
