"""Triton's configurations of the teacher's models: the student's, by other names and for throughput."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching

from engines.repository.configs import parsed, written

# Nobody waits for one answer of a relabelling job: full batches are worth more than 20 ms, which is little beside
# an LLM's forward pass.
QUEUE_DELAY_US = 20_000
SCORED_BY = "scored_by"  # the tokenizer's parameter: which model its rows are for
OF_ONE_VERSION = ("version_policy", "cc_model_filenames", "default_model_filename")


def for_teacher(student: ModelConfig, names: Mapping[str, str]) -> ModelConfig:
    """A configuration of the student's models with the teacher's ``names``.

    The scorer has one instance a device, since an LLM takes its memory as often, waits for full batches, and
    refuses nobody for the length of its queue: the clients bound what is on its way.
    """
    config = ModelConfig()
    config.CopyFrom(student)
    config.name = names[student.name]
    for step in config.ensemble_scheduling.step:
        step.model_name = names[step.model_name]
    if SCORED_BY in config.parameters:
        config.parameters[SCORED_BY].string_value = names[config.parameters[SCORED_BY].string_value]
    if student.name != "student":
        return config
    for field in OF_ONE_VERSION:
        config.ClearField(field)
    for group in config.instance_group:
        group.count = 1
    if config.HasField("dynamic_batching"):
        largest = sorted(student.dynamic_batching.preferred_batch_size)[-1:]
        batching = ModelDynamicBatching(preferred_batch_size=largest, max_queue_delay_microseconds=QUEUE_DELAY_US)
        config.dynamic_batching.CopyFrom(batching)
    return config


def identified(scorer: Path, changed: Mapping[Path, bytes], version: int, identity: str) -> dict[Path, bytes]:
    """The scorer's configurations, on top of their ``changed`` contents, with ``identity`` as what a version is.

    Clients read it (``trainer.score --triton``): scores of one teacher must not be mixed with another's.
    """
    files = sorted([*scorer.glob("config.pbtxt"), *scorer.glob("configs/*.pbtxt")])
    contents = {}
    for path in files:
        config = parsed(path, changed.get(path, path.read_bytes()).decode())
        config.parameters[f"version.{version}"].string_value = identity
        contents[path] = written(config)
    return contents
