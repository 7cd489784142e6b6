"""What may run a graph on processors, by the names of ``--engine``."""

from __future__ import annotations

from engines.onnxruntime import OnnxRuntime
from engines.openvino import OpenVino
from engines.processors import Library

LIBRARIES: dict[str, type[Library]] = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
