"""A build from checkpoint to installed version."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from engines.auto import build_fastest
from engines.builders import Judged, builder_for
from engines.job import BuildArguments, Job
from engines.records import Trial
from engines.repository.install import check_repository, install
from engines.repository.manifest import Manifest, with_newest_plans
from engines.repository.models import STUDENT, TEACHER
from engines.table import AUTO
from model_repository.student.served import served_version
from trainer.addresses import address_of, shown
from trainer.storage import publish


def build_version(arguments: BuildArguments) -> Path:
    """Build, judge and install; the new version's directory. Raises ParityError for a refused engine, EngineError where
    all that auto tries are."""
    models = TEACHER if arguments.teacher else STUDENT
    repository, checkpoint = Path(arguments.model_repository), Path(arguments.checkpoint)
    build = build_fastest if arguments.engine == AUTO else _one(arguments)
    check_repository(repository, arguments.engines[0])
    with tempfile.TemporaryDirectory(prefix="build_engines-") as directory:
        judged, tried = build(Job.of(arguments, Path(directory)))
        files, manifest = judged.built.files, Manifest.of(judged, tried)
        if arguments.add_to_newest:
            files, manifest = with_newest_plans(repository / models.scorer, files, manifest)
        installed = install(repository, checkpoint, files, manifest, models)
    publish(repository)
    size = sum(path.stat().st_size for path in installed.iterdir() if path.name.startswith("model."))
    print(
        shown(f"{installed}: {manifest.engine}, {manifest.runs_in}, {size / 1e6:.1f} MB"), *manifest.summary(), sep="\n"
    )
    if (served := served_version(installed.parent)) != int(installed.name):
        teacher, address = " --teacher" if arguments.teacher else "", address_of(repository)
        print(
            f"Triton is told to serve version {served}, not this one: "
            f"python -m engines.versions use latest --model_repository {'A_FOLDER' if address else repository}{teacher}"
            + (f" in a copy of {address}" if address else "")
        )
    return installed


def _one(arguments: BuildArguments) -> Callable[[Job], tuple[Judged, tuple[Trial, ...]]]:
    """Build the engine that was asked for, and try no other. Raises EngineError where it cannot be built."""
    builder = builder_for(arguments)

    def build(job: Job) -> tuple[Judged, tuple[Trial, ...]]:
        judged = builder.judged(job)
        judged.report.check(judged.built.runs_in)
        return judged, ()

    return build
