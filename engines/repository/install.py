"""A new version of the student or the teacher in a model repository: engine, tokenizer and dimensions as one set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from engines.records import EngineError
from engines.repository.changes import Changes
from engines.repository.configs import changed_configs, served_version, versions_of
from engines.repository.manifest import MANIFEST_FILE, Manifest, read_manifest
from engines.repository.models import SCORERS, STUDENT, ModelSet, copy_models, identified, other_release
from model_repository.tokenizer.pair_encoding import ENCODING_FILE, TOKENIZER_FILE

SKELETON = Path(__file__).parents[2] / "model_repository"
SERVER_MODEL = "model.py"  # Triton wants a Python model inside its version


def install(
    repository: Path, checkpoint: Path, files: Sequence[Path], manifest: Manifest, models: ModelSet = STUDENT
) -> Path:
    """The directory of the new version, ``student/<highest + 1>``; it appears last, and whole.

    ``models`` that the repository lacks appear with it, and code of another release is replaced. A repository that
    does not exist is made from the project's own. If anything fails, all is as it was. Raises EngineError for a
    directory that cannot be written.
    """
    root = repository.absolute()
    is_new = not root.exists() or not any(root.iterdir())
    lacking = [name for name in models.names.values() if not any((root / name).glob("*"))]
    try:
        with Changes() as changes:
            # What appears is made beside the repository: then one rename brings it in.
            staged = changes.staged(root.with_name(f".{root.name}.partial"))
            copy_models(SKELETON, staged, models, lacking)
            where = {name: (staged if name in lacking else root) / name for name in models.names.values()}
            scorer, tokenizer = where[models.scorer], where[models.tokenizer]

            version = max(versions_of(scorer), default=0) + 1
            partial = changes.staged(scorer / f".{version}.partial")
            for path in files:
                shutil.copyfile(path, partial / path.name)
            if manifest.served_by:
                shutil.copyfile(SKELETON / "student" / SERVER_MODEL, partial / SERVER_MODEL)
            (partial / MANIFEST_FILE).write_text(manifest.written(), encoding="utf-8")

            configs = changed_configs(where.values(), manifest.dimensions, manifest.plans)
            if models.are_copies:
                configs |= identified(scorer, configs, version, manifest.identity)
            for path, content in {**other_release(SKELETON, where, models), **configs}.items():
                if content is None:
                    changes.remove(path)
                else:
                    changes.write(path, content)
            for name in (TOKENIZER_FILE, ENCODING_FILE):
                changes.write(tokenizer / name, (checkpoint / name).read_bytes())

            changes.move(partial, scorer / str(version))
            for source, target in [(staged, root)] if is_new else [(staged / name, root / name) for name in lacking]:
                changes.move(source, target)
    except OSError as error:
        raise EngineError(f"{repository}: cannot be written: {error}") from error
    return repository / models.scorer / str(version)


def check_repository(repository: Path, engine: str) -> None:
    """Raises EngineError unless the directory is a model repository, or free to become one, and serves ``engine``.

    Its configurations are for one kind of engine: with a version of another kind Triton would not start.
    """
    if engine == "tensorrt_rtx" and repository.resolve() == SKELETON.resolve():
        raise EngineError(
            f"{repository}: Triton opens plans of tensorrt only; give those of tensorrt_rtx another --model_repository"
        )
    free = not repository.exists() or (repository.is_dir() and not any(repository.iterdir()))
    origin = SKELETON if free else repository
    scorers = [name for name in SCORERS if (origin / name / "config.pbtxt").is_file()]
    if not scorers:
        expected = " or ".join(f"{name}/config.pbtxt" for name in SCORERS)
        raise EngineError(f"{origin}: not a model repository of ours (it has no {expected})")
    for scorer in () if free else scorers:
        served = served_version(repository / scorer)
        installed = read_manifest(repository / scorer / str(served))["engine"] if served else engine
        if installed != engine:
            raise EngineError(
                f"{repository}: {scorer}/{served}, which Triton serves, is for {installed}; give {engine} a "
                "--model_repository of its own"
            )
