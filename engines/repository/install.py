"""A new version of the student or the teacher in a model repository: engine, tokenizer and dimensions as one set."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from client.files import appears_whole, check_writable, flush, move, naming
from engines.records import EngineError
from engines.repository.configs import changed_configs
from engines.repository.manifest import MANIFEST_FILE, Manifest, read_manifest
from engines.repository.models import SCORERS, SERVER_MODEL, STUDENT, ModelSet, copy_models, identified, other_release
from engines.table import ENGINES, Engine
from model_repository.student.digests import sha256
from model_repository.student.served import served_version, versions_of
from model_repository.tokenizer.pair_encoding import ENCODING_FILE, TOKENIZER_FILE

SKELETON = Path(__file__).parents[2] / "model_repository"


def install(
    repository: Path, checkpoint: Path, files: Sequence[Path], manifest: Manifest, models: ModelSet = STUDENT
) -> Path:
    """The directory of the new version, ``student/<highest + 1>``; it appears last, and whole.

    ``models`` that the repository lacks appear with it, and code of another release is replaced. A repository that
    does not exist is made from the project's own. If anything fails, all is as it was. Raises DisRankerError for a
    directory that cannot be written.
    """
    root = repository.absolute()
    is_new = not root.exists() or not any(root.iterdir())
    lacking = [name for name in models.names.values() if not any((root / name).glob("*"))]
    with naming(repository), together() as changes:
        # What appears is made beside the repository: then one rename brings it in.
        staged = changes.staged(root.with_name(f".{root.name}.partial"))
        copy_models(SKELETON, staged, models, lacking)
        where = {name: (staged if name in lacking else root) / name for name in models.names.values()}
        scorer, tokenizer = where[models.scorer], where[models.tokenizer]

        version = max(versions_of(scorer), default=0) + 1
        partial = changes.staged(scorer / f".{version}.partial")
        _fill(partial, files, manifest)  # it takes seconds; what follows changes what is served, and takes none

        configs = changed_configs(where.values(), manifest.dimensions, manifest.plans)
        if models.are_copies:
            configs |= identified(scorer, configs, version, manifest.identity)
        for path, content in {**other_release(SKELETON, where, models), **configs}.items():
            changes.write(path, content)
        for name in (TOKENIZER_FILE, ENCODING_FILE):
            changes.write(tokenizer / name, (checkpoint / name).read_bytes())

        changes.move(partial, scorer / str(version))
        for source, target in [(staged, root)] if is_new else [(staged / name, root / name) for name in lacking]:
            changes.move(source, target)
    return repository / models.scorer / str(version)


def _fill(version: Path, files: Sequence[Path], manifest: Manifest) -> None:
    for path in files:
        shutil.copyfile(path, version / path.name)
    if manifest.served_by:
        shutil.copyfile(SKELETON / "student" / SERVER_MODEL, version / SERVER_MODEL)
    described = replace(manifest, files={path.name: sha256(version / path.name) for path in files})
    (version / MANIFEST_FILE).write_text(described.written(), encoding="utf-8")
    flush(version)


def check_repository(repository: Path, engine: Engine) -> None:
    """Raises EngineError unless the directory is a model repository, or free to become one, and serves ``engine``, and
    DisRankerError where it cannot be written.

    Its configurations are for one kind of engine: with a version of another kind Triton would not start.
    """
    if engine.name == "tensorrt_rtx" and repository.resolve() == SKELETON.resolve():
        raise EngineError(
            f"{repository}: Triton opens plans of tensorrt only; give those of tensorrt_rtx another --model_repository"
        )
    free = not repository.exists() or (repository.is_dir() and not any(repository.iterdir()))
    origin = SKELETON if free else repository
    scorers = [name for name in SCORERS if (origin / name / "config.pbtxt").is_file()]
    if not scorers:
        expected = " or ".join(f"{name}/config.pbtxt" for name in SCORERS)
        raise EngineError(f"{origin}: not a model repository of ours (it has no {expected})")
    check_writable(repository / "student")
    for scorer in () if free else scorers:
        served = served_version(repository / scorer)
        installed = read_manifest(repository / scorer / str(served))["engine"] if served else engine.name
        if engine.kind != getattr(ENGINES.get(installed), "kind", installed):
            raise EngineError(
                f"{repository}: {scorer}/{served}, which Triton serves, is for {installed}; give {engine.name} a "
                "--model_repository of its own"
            )


class Changes(NamedTuple):
    """Undoes the changes of files so far, and cleans up at the end. Every file appears whole."""

    undo: ExitStack
    cleanup: ExitStack

    def staged(self, directory: Path) -> Path:
        """An empty directory to prepare things in; what is still there at the end is removed."""
        shutil.rmtree(directory, ignore_errors=True)  # of a command that was killed
        directory.mkdir(parents=True)
        self.cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def write(self, path: Path, content: bytes) -> None:
        before = path.read_bytes() if path.exists() else None
        if content == before:
            return
        _write(path, content)
        self.undo.callback(_write, path, before)

    def move(self, source: Path, target: Path) -> None:
        move(source, target)
        self.undo.callback(target.rename, source)


@contextmanager
def together() -> Iterator[Changes]:
    """All changes of the block are made if it ends well, none if it fails."""
    with ExitStack() as cleanup, ExitStack() as undo:
        yield Changes(undo, cleanup)
        undo.pop_all()


def _write(path: Path, content: bytes | None) -> None:
    """Write a file whole; remove it for None."""
    if content is None:
        path.unlink()
        return
    with appears_whole(path) as partial:
        partial.write_bytes(content)
