"""The dimensions of a build, and the version to serve, in Triton's config.pbtxt files."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.records import Dimensions, EngineError

TENSORRT = "tensorrt_plan"
HEADER = "# Written by build_engines.py or engines.versions.\n"
MAX_DOCUMENTS = "max_documents"  # the scorer's parameter that tells clients how many a request may have
SHARED = "scores"  # takes rows of any width: the student's and the teacher's


def changed_configs(
    models: Iterable[Path], dimensions: Dimensions, plans: Mapping[str, str] = MappingProxyType({})
) -> dict[Path, bytes]:
    """New contents of those ``config.pbtxt`` and ``configs/*.pbtxt`` whose dimensions or plans differ.

    In them, every tensor of the packed layout gets its last dimension (in warm-up and CUDA graphs too), and a
    model that batches gets ``max_batch_size``. TensorRT's gets ``plans``, file names by compute capability. A
    file that fits already is left out and keeps its comments.
    """
    changed = {}
    for model in models:
        for path in config_files(model):
            before = read_config(path)
            after = _resized(before, dimensions)
            if after.platform == TENSORRT:
                after.cc_model_filenames.clear()
                after.cc_model_filenames.update(plans)
            if after != before:
                changed[path] = written(after)
    return changed


def written(config: ModelConfig) -> bytes:
    """The text of a config.pbtxt."""
    return (HEADER + text_format.MessageToString(config)).encode()


def serving_configs(scorer: Path, versions: Sequence[int]) -> dict[Path, bytes]:
    """New contents of the scorer's configs, in which Triton serves these ``versions``; for none, the newest."""
    changed = {}
    for path in config_files(scorer):
        config = read_config(path)
        config.ClearField("version_policy")
        if versions:
            config.version_policy.specific.versions.extend(versions)
        changed[path] = written(config)
    return changed


def config_files(model: Path) -> list[Path]:
    """A model's ``config.pbtxt`` and those of ``configs/``, which --model-config-name chooses from."""
    return sorted([*model.glob("config.pbtxt"), *model.glob("configs/*.pbtxt")])


def read_config(path: Path) -> ModelConfig:
    """A config.pbtxt. Raises EngineError for a file that is not one."""
    return parsed(path, path.read_text(encoding="utf-8"))


def parsed(path: Path, text: str) -> ModelConfig:
    """The configuration in a text that ``path`` has, or will have. Raises EngineError for any other text."""
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
    if MAX_DOCUMENTS in resized.parameters:
        resized.parameters[MAX_DOCUMENTS].string_value = str(dimensions.max_rows)
    if resized.max_batch_size > 0:
        resized.max_batch_size = dimensions.max_rows
        _limit_batches(resized, dimensions)
    return resized


def _limit_batches(config: ModelConfig, dimensions: Dimensions) -> None:
    """Batches that the scheduler waits for and CUDA graphs are recorded for, none above ``max_batch_size``."""
    most = dimensions.max_rows
    if config.dynamic_batching.preferred_batch_size:
        preferred = sorted({min(size, most) for size in config.dynamic_batching.preferred_batch_size})
        config.dynamic_batching.preferred_batch_size[:] = preferred
    recorded = config.optimization.cuda.graph_spec
    fitting = [spec for spec in recorded if spec.graph_lower_bound.batch_size <= most]
    for spec in fitting:
        spec.batch_size = min(spec.batch_size, most)
        for name, shape in (*spec.input.items(), *spec.graph_lower_bound.input.items()):
            shape.dim[:] = [dimensions.width(name) or -1]
    if recorded:
        kept = [copy.deepcopy(spec) for spec in fitting]
        del recorded[:]
        recorded.extend(kept)
