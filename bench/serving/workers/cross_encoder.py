"""sentence-transformers' CrossEncoder in process: backends torch, onnx and openvino, as they come or in int8.

Length sorting is its own.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder

from bench.serving.worker import InProcess, main

FILES = {  # as its exporters name them
    ("onnx", "int8"): "onnx/model_quint8_avx2.onnx",
    ("openvino", "int8"): "openvino/openvino_model_qint8_quantized.xml",
}
CALIBRATION = 300  # pairs; the exporter's own default


class CrossEncoderWorker(InProcess):
    def __init__(self, setup: dict[str, Any]) -> None:
        names = ("sentence-transformers", "transformers", "torch")
        super().__init__(32, {name: version(name) for name in (*names, *_runtime(setup["backend"]))})
        self._model = load(setup)

    def score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        pairs = [(query, document) for document in documents]
        found = self._model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False)
        return [float(score) for score in found]


def load(setup: dict[str, Any]) -> Any:
    """``backend`` torch, onnx or openvino; ``precision`` fp32, bf16 or int8; exports are kept in ``made``."""
    backend, precision = setup["backend"], setup["precision"]
    settings = {"activation_fn": torch.nn.Identity(), "device": "cpu", "max_length": setup["max_pair_tokens"]}
    if backend == "torch":
        types = {"fp32": torch.float32, "bf16": torch.bfloat16}
        return CrossEncoder(setup["checkpoint"], model_kwargs={"torch_dtype": types[precision]}, **settings)
    exported = Path(setup["made"]) / f"exported-{backend}"
    if not exported.exists():
        CrossEncoder(setup["checkpoint"], backend=backend, **settings).save_pretrained(str(exported))
    if precision == "fp32":
        return CrossEncoder(str(exported), backend=backend, **settings)
    file = FILES[backend, precision]
    if not (exported / file).exists():
        _quantise(CrossEncoder(str(exported), backend=backend, **settings), backend, exported, setup)
    return CrossEncoder(str(exported), backend=backend, model_kwargs={"file_name": file}, **settings)


def _quantise(model: CrossEncoder, backend: str, exported: Path, setup: dict[str, Any]) -> None:
    if backend == "onnx":
        from sentence_transformers import export_dynamic_quantized_onnx_model

        export_dynamic_quantized_onnx_model(model, "avx2", str(exported))
        return
    from optimum.intel import OVQuantizationConfig  # in this environment only
    from sentence_transformers import export_static_quantized_openvino_model

    texts = [f"{query} {text}" for query, documents in setup["calibration"] for text in documents]
    folder = exported.with_name(f"{exported.name}-calibration")
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    export_static_quantized_openvino_model(
        model, OVQuantizationConfig(num_samples=min(CALIBRATION, len(texts))), str(exported),
        dataset_name=str(folder), dataset_config_name="default", dataset_split="train", column_name="text",
    )  # fmt: skip


def _runtime(backend: str) -> tuple[str, ...]:
    return {"torch": (), "onnx": ("onnxruntime", "optimum-onnx"), "openvino": ("openvino", "optimum-intel")}[backend]


if __name__ == "__main__":
    main(lambda setup: nullcontext(CrossEncoderWorker(setup)))
