"""fastembed's TextCrossEncoder in process, with the ONNX file that sentence-transformers exported."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder

from bench.serving.worker import InProcess, main


class FastEmbedWorker(InProcess):
    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(64, {name: version(name) for name in ("fastembed", "onnxruntime")})
        name = "bench/student"  # custom models need a name, and a source that is then not asked
        TextCrossEncoder.add_custom_model(name, sources=ModelSource(hf=name), model_file="onnx/model.onnx")
        model = str(Path(setup["made"]) / "exported-onnx")
        self._model = TextCrossEncoder(name, specific_model_path=model, threads=setup["threads"])

    def score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        return list(self._model.rerank(query, list(documents), batch_size=self.batch_size))


if __name__ == "__main__":
    main(lambda setup: nullcontext(FastEmbedWorker(setup)))
