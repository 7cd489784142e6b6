"""The models that a build installs as one set: the student's, or the teacher's, which are copies by other names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.repository.configs import read_config, written
from engines.repository.teacher import for_teacher

TRACKED = ("*.py", "*.pbtxt", ".gitkeep")


@dataclass(frozen=True)
class ModelSet:
    """``names`` in a repository, by the names of the project's own models.

    In the order in which they may appear: an ensemble after its parts, so that a server which starts
    meanwhile finds nothing that it cannot load.
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


def copy_models(skeleton: Path, target: Path, models: ModelSet) -> None:
    """The set as the project has it, and without what was built, below ``target``."""
    for origin, name in models.names.items():
        for source in tracked(skeleton, origin):
            path = target / name / source.relative_to(skeleton / origin)
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != origin and source.suffix == ".pbtxt":
                path.write_bytes(written(for_teacher(read_config(source), models.names)))
            else:
                shutil.copy2(source, path)


@contextmanager
def places(skeleton: Path, root: Path, models: ModelSet) -> Iterator[dict[str, Path]]:
    """Where each model of the set lies: in the repository or, where that lacks it, as a copy beside the repository."""
    staged = root.absolute().with_name(f".{root.absolute().name}.{models.scorer}.partial")
    shutil.rmtree(staged, ignore_errors=True)  # of a build that was killed
    lacking = {name for name in models.names.values() if not any((root / name).glob("*"))}
    try:
        if lacking:
            copy_models(skeleton, staged, models)
        yield {name: (staged if name in lacking else root) / name for name in models.names.values()}
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def stale_code(skeleton: Path, where: Mapping[str, Path], models: ModelSet) -> dict[Path, bytes]:
    """New contents of the set's Python files that differ from the project's: all that serves is of one release."""
    stale = {}
    for origin, name in models.names.items():
        for source in tracked(skeleton, origin):
            path, content = where[name] / source.relative_to(skeleton / origin), source.read_bytes()
            if source.suffix == ".py" and (not path.is_file() or path.read_bytes() != content):
                stale[path] = content
    return stale


def tracked(skeleton: Path, origin: str) -> Iterator[Path]:
    """The project's own files of a model, without what was built."""
    for source in (path for pattern in TRACKED for path in (skeleton / origin).rglob(pattern)):
        first = source.relative_to(skeleton / origin).parts[0]
        if not (origin == "student" and first.lstrip(".")[:1].isdigit()):  # a built version
            yield source
