"""The dimensions of a build in Triton's config.pbtxt files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.records import Dimensions, EngineError

HEADER = "# Written by build_engines.py: the dimensions are those of the checkpoint.\n"
SHARED = "scores"  # takes rows of any width: the student's and the teacher's


def changed_configs(models: Iterable[Path], dimensions: Dimensions) -> dict[Path, bytes]:
    """New contents of those ``config.pbtxt`` and ``configs/*.pbtxt`` whose dimensions differ.

    In them, every tensor of the packed layout gets its last dimension (in warm-up too), and a model
    that batches gets ``max_batch_size``. A file that fits already is not among them, and so keeps
    its comments.
    """
    changed = {}
    for model in models:
        for path in sorted([*model.glob("config.pbtxt"), *model.glob("configs/*.pbtxt")]):
            before = read_config(path)
            after = _resized(before, dimensions)
            if after != before:
                changed[path] = written(after)
    return changed


def written(config: ModelConfig) -> bytes:
    """The text of a config.pbtxt."""
    return (HEADER + text_format.MessageToString(config)).encode()


def read_config(path: Path) -> ModelConfig:
    """A config.pbtxt. Raises EngineError for a file that is not one."""
    return parsed(path, path.read_text(encoding="utf-8"))


def parsed(path: Path, text: str) -> ModelConfig:
    """The configuration that ``path`` has, or will have. Raises EngineError for a text that is none."""
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise EngineError(f"{path}: not a Triton model configuration: {error}") from error
    return config


def _resized(config: ModelConfig, dimensions: Dimensions) -> ModelConfig:
    resized = ModelConfig()
    resized.CopyFrom(config)
    tensors = [(tensor.name, tensor) for tensor in (*resized.input, *resized.output)]
    for warmup in resized.model_warmup:
        tensors.extend(warmup.inputs.items())
        warmup.batch_size = min(warmup.batch_size, dimensions.max_rows)
    for name, tensor in tensors:
        width = dimensions.width(name)
        if width is not None and config.name == SHARED:
            tensor.dims[-1] = -1
        elif width is not None:
            tensor.dims[-1] = width
    if resized.max_batch_size > 0:
        resized.max_batch_size = dimensions.max_rows
    return resized
