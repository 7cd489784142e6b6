"""fastembed's TextCrossEncoder in process, with the ONNX file that sentence-transformers exported."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder

from bench.serving.job import Option
from bench.serving.load import Score
from bench.serving.worker import main


class FastEmbedSystem:
    def __init__(self, setup: dict[str, Any]) -> None:
        name = "bench/student"  # custom models need a name, and a source that is then not asked
        TextCrossEncoder.add_custom_model(name, sources=ModelSource(hf=name), model_file="onnx/model.onnx")
        self._model = TextCrossEncoder(name, specific_model_path=setup["directory"], threads=setup["threads"])
        self._batch_size = 64
        self._turn: AbstractContextManager[Any] = nullcontext()
        self.versions = {name: version(name) for name in ("fastembed", "onnxruntime")}

    def use(self, option: Option) -> None:
        self._batch_size = option["batch_size"]
        self._turn = nullcontext() if option["together"] else threading.Lock()

    def connect(self) -> Score:
        return self._score

    def _score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        with self._turn:
            return list(self._model.rerank(query, list(documents), batch_size=self._batch_size))


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[FastEmbedSystem]:
    yield FastEmbedSystem(setup)


if __name__ == "__main__":
    main(opened)
