"""Compile a checkpoint into a new version of the student that Triton serves, or of the teacher.

    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine openvino --precision bf16
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine onnxruntime --precision fp32
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine tensorrt --precision fp16
    python build_engines.py --teacher --checkpoint runs/teacher --data dev.jsonl --engine tensorrt --precision bf16

The checkpoint becomes one graph, and the graph an engine. The engine is installed only if it scores
the pairs of ``--data`` as the checkpoint does in float32 (exit code 1 if not; 2 for bad input).
"""

from __future__ import annotations

import engines  # noqa: F401  # isort: skip  # before any library: it chooses how threads wait
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines.builders import builder_for
from engines.job import BuildArguments, Job
from engines.repository.install import check_repository, install
from engines.repository.manifest import Manifest, with_newest_plans
from engines.repository.models import STUDENT, TEACHER
from model_repository.student.served import served_version
from trainer.addresses import shown
from trainer.command import command, parse
from trainer.storage import publish


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, 1 for an engine that the gate refuses, 2 for bad input."""
    (arguments,) = parse(argv, BuildArguments)
    build_version(arguments)


def build_version(arguments: BuildArguments) -> Path:
    """Build, judge and install; the new version's directory. Raises ParityError for a refused engine."""
    models = TEACHER if arguments.teacher else STUDENT
    repository, checkpoint = Path(arguments.model_repository), Path(arguments.checkpoint)
    builder = builder_for(arguments)
    check_repository(repository, arguments.engine)
    with tempfile.TemporaryDirectory(prefix="build_engines-") as directory:
        job = Job.of(arguments, Path(directory))
        built = builder.build(job)
        report = job.yardstick.report(built.run, built.judged)
        report.check(built.runs_in)
        files, manifest = built.files, Manifest.of(job, built, report)
        if arguments.add_to_newest:
            files, manifest = with_newest_plans(repository / models.scorer, files, manifest)
        installed = install(repository, checkpoint, files, manifest, models)
    publish(repository)
    size = sum(path.stat().st_size for path in installed.iterdir() if path.name.startswith("model."))
    print(
        shown(f"{installed}: {manifest.engine}, {manifest.runs_in}, {size / 1e6:.1f} MB"), *manifest.summary(), sep="\n"
    )
    if (served := served_version(installed.parent)) != int(installed.name):
        teacher = " --teacher" if arguments.teacher else ""
        print(
            f"Triton is told to serve version {served}, not this one: "
            f"python -m engines.versions use latest --model_repository {repository}{teacher}"
        )
    return installed


if __name__ == "__main__":
    sys.exit(main())
