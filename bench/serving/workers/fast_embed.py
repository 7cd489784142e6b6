"""fastembed's TextCrossEncoder in process, with the ONNX file that sentence-transformers exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder

from bench.serving.worker import main
from bench.serving.workers.in_process import InProcess


class FastEmbedSystem(InProcess):
    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(64, {name: version(name) for name in ("fastembed", "onnxruntime")})
        name = "bench/student"  # custom models need a name, and a source that is then not asked
        TextCrossEncoder.add_custom_model(name, sources=ModelSource(hf=name), model_file="onnx/model.onnx")
        self._model = TextCrossEncoder(name, specific_model_path=setup["directory"], threads=setup["threads"])

    def scores(self, query: str, documents: tuple[str, ...]) -> list[float]:
        return list(self._model.rerank(query, list(documents), batch_size=self.batch_size))


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[FastEmbedSystem]:
    yield FastEmbedSystem(setup)


if __name__ == "__main__":
    main(opened)
