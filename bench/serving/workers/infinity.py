"""Infinity's server over HTTP, ``/rerank`` with raw scores; every caller keeps its connection open.

The batch size is a flag of the server, which is started anew for another one.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.children import free_ports, healthy, started
from bench.serving.load import LoadError, Option, Score
from bench.serving.worker import Worker, main

TIMEOUT_S = 120


class InfinityWorker(Worker):
    """``engine`` torch or optimum; a copy of the checkpoint and the log are kept in ``made``."""

    def __init__(self, setup: dict[str, Any], running: ExitStack) -> None:
        self.versions = {name: version(name) for name in ("infinity_emb", "torch", "transformers", "onnxruntime")}
        self._setup, self._running = setup, running
        self._option: Option = {}
        made = Path(setup["made"])
        self._model = made / f"infinity-{setup['engine']}"
        shutil.copytree(setup["checkpoint"], self._model, dirs_exist_ok=True)
        if setup["engine"] == "optimum":  # finds a file at the top of the working directory only
            shutil.copyfile(made / "exported-onnx" / "onnx" / "model.onnx", self._model / "model.onnx")

    def use(self, option: Option) -> None:
        if option == self._option:
            return
        self._running.close()
        self._option, self._port = option, free_ports("http")["http"]
        command = [str(Path(sys.executable).with_name("infinity_emb")), "v2", "--model-id", ".", "--engine",
                   self._setup["engine"], "--device", "cpu", "--host", "127.0.0.1", "--port", str(self._port),
                   "--served-model-name", "student", "--batch-size", str(option["batch_size"]),
                   "--no-bettertransformer", "--log-level", "error"]  # fmt: skip
        log = self._model / f"server-{option['batch_size']}.log"
        server = self._running.enter_context(started(command, log, cwd=self._model))
        server.wait_until(lambda: healthy(self._port, "/health"))

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
    with ExitStack() as running:
        yield InfinityWorker(setup, running)


if __name__ == "__main__":
    main(opened)
