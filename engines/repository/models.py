"""The models that a build installs as one set: the student's, or the teacher's, which are copies by other names."""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelDynamicBatching

from engines.repository.configs import config_files, parsed, read_config, written
from engines.repository.manifest import MANIFEST_FILE
from model_repository.student.served import versions_of

SERVER_MODEL = "model.py"  # Triton wants a Python model inside its version
TRACKED = ("*.py", "*.pbtxt", ".gitkeep")
# Nobody waits for one answer of a relabelling job: full batches are worth more than 20 ms, which is little beside
# an LLM's forward pass.
QUEUE_DELAY_US = 20_000
SCORED_BY = "scored_by"  # the tokenizer's parameter: which model its rows are for
MAX_WAIT = "max_wait_s"  # the student's parameter: how long requests without a deadline may wait, 0 for any time
OF_ONE_VERSION = ("version_policy", "cc_model_filenames", "default_model_filename")


@dataclass(frozen=True)
class ModelSet:
    """``names`` in a repository, by the names of the project's own models.

    They appear in this order, an ensemble after its parts: a server that starts meanwhile finds nothing that it cannot
    load.
    """

    names: Mapping[str, str]

    @property
    def scorer(self) -> str:
        """The model that holds the engine."""
        return self.names["student"]

    @property
    def tokenizer(self) -> str:
        return self.names["tokenizer"]

    @property
    def ensemble(self) -> str:
        """The model that clients call."""
        return self.names["ranker"]

    @property
    def are_copies(self) -> bool:
        return self.scorer != "student"


STUDENT = ModelSet({name: name for name in ("student", "tokenizer", "scores", "ranker", "ranker_tokens")})
TEACHER = ModelSet(
    {"student": "teacher", "tokenizer": "teacher_tokenizer", "scores": "scores", "ranker": "teacher_ranker"}
)
SCORERS = (STUDENT.scorer, TEACHER.scorer)


def copy_models(skeleton: Path, target: Path, models: ModelSet, wanted: Container[str]) -> None:
    """Those of the set that are ``wanted``, as the project has them, without what was built, below ``target``."""
    for origin, name in models.names.items():
        for source in tracked(skeleton, origin) if name in wanted else ():
            path = target / name / source.relative_to(skeleton / origin)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != origin and source.suffix == ".pbtxt":
                path.write_bytes(written(for_teacher(read_config(source), models.names)))
            else:
                shutil.copy2(source, path)


def other_release(skeleton: Path, where: Mapping[str, Path], models: ModelSet) -> dict[Path, bytes]:
    """New contents of the set's code that is of another release than the project's.

    Other files are the user's and stay. A version that was installed earlier gets the server's model too: it must run
    with the code that now lies beside it.
    """
    code = {
        where[name] / source.relative_to(skeleton / origin): source.read_bytes()
        for origin, name in models.names.items()
        for source in tracked(skeleton, origin)
        if source.suffix == ".py"
    }
    scorer = where[models.scorer]
    for version in (scorer / str(number) for number in versions_of(scorer)):
        if (version / SERVER_MODEL).is_file() and (version / MANIFEST_FILE).is_file():
            code[version / SERVER_MODEL] = (skeleton / "student" / SERVER_MODEL).read_bytes()
    return {path: content for path, content in code.items() if not path.is_file() or content != path.read_bytes()}


def tracked(skeleton: Path, origin: str) -> Iterator[Path]:
    """The project's own files of a model, without what was built."""
    for source in (path for pattern in TRACKED for path in (skeleton / origin).rglob(pattern)):
        if not _is_built(origin, source.relative_to(skeleton / origin)):
            yield source


def _is_built(origin: str, path: Path) -> bool:
    """Whether a path in a model lies in a version that was built, or in one on its way."""
    return origin == "student" and path.parts[0].lstrip(".")[:1].isdigit()


def for_teacher(student: ModelConfig, names: Mapping[str, str]) -> ModelConfig:
    """A configuration of the student's models with the teacher's ``names``.

    The scorer has one instance a device, since each takes an LLM's memory. It waits for full batches. No request is
    refused for the length of a queue, since the clients bound what is on its way.
    """
    config = ModelConfig()
    config.CopyFrom(student)
    config.name = names[student.name]
    for step in config.ensemble_scheduling.step:
        step.model_name = names[step.model_name]
    if SCORED_BY in config.parameters:
        config.parameters[SCORED_BY].string_value = names[config.parameters[SCORED_BY].string_value]
    if MAX_WAIT in config.parameters:
        config.parameters[MAX_WAIT].string_value = "0"
    if student.name != "student":
        config.ClearField("dynamic_batching")
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
    """The scorer's configurations, on top of their ``changed`` contents, with the ``identity`` of a version.

    ``trainer.score --triton`` reads it: scores of one teacher must not be mixed with another's.
    """
    contents = {}
    for path in config_files(scorer):
        config = parsed(path, changed.get(path, path.read_bytes()).decode())
        config.parameters[f"version.{version}"].string_value = identity
        contents[path] = written(config)
    return contents
