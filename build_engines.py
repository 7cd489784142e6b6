"""Compile a checkpoint into a new version of the student that Triton serves, or of the teacher.

    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine openvino --precision bf16
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine onnxruntime --precision fp32
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine tensorrt --precision fp16
    python build_engines.py --teacher --checkpoint runs/teacher --data dev.jsonl --engine tensorrt --precision bf16

The checkpoint becomes one graph, the graph an engine. The engine is installed only if it scores
the pairs of ``--data`` as the checkpoint does in float32 (exit code 1 if not; 2 for bad input).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers import HfArgumentParser, PreTrainedModel
from transformers.hf_argparser import DataClassType

from engines.arguments import CALIBRATED, BuildArguments
from engines.builders import processors, tensorrt
from engines.builders import torch as torch_engine
from engines.builders.processors import LIBRARIES
from engines.graph.export import export_graph
from engines.parity import ParityReport, Yardstick, torch_runner
from engines.quantise.calibration import Calibration, read_calibration
from engines.records import BuiltEngine, Dimensions, EngineError, Graph, ParityError
from engines.repository import summary
from engines.repository.configs import served_version
from engines.repository.install import Manifest, check_repository, install
from engines.repository.models import STUDENT, TEACHER
from engines.repository.plans import carried
from model_repository.tokenizer.pair_encoding import EncodingError, PairEncoder, encoding_hash
from trainer.checkpoints.load import CheckpointError, load_scorer, require_checkpoint
from trainer.data.records import DataError, QueryGroup, read_groups
from trainer.measures.metrics import judgments


class Job(NamedTuple):
    """What an engine is built from: a float32 scorer, and what its scores are compared with and calibrated on."""

    model: PreTrainedModel
    dimensions: Dimensions
    yardstick: Yardstick
    calibration: Calibration | None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 for an engine that the gate refuses, 2 for bad input."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        parser = HfArgumentParser(DataClassType(BuildArguments))
        (arguments,) = parser.parse_args_into_dataclasses(args=None if argv is None else list(argv))
        build_version(arguments)
    except ParityError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    except (DataError, EncodingError, CheckpointError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_version(arguments: BuildArguments) -> Path:
    """Build, judge and install; the new version's directory. Raises ParityError for a refused engine."""
    capabilities = _capabilities(arguments)
    checkpoint, repository = Path(arguments.checkpoint), Path(arguments.model_repository)
    require_checkpoint(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: no checkpoint here (it has no config.json)")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    groups = read_groups(arguments.data)
    calibration = _calibration(arguments, groups, encoder)
    models = TEACHER if arguments.teacher else STUDENT
    check_repository(repository, arguments.engine)
    yardstick = Yardstick.of(torch_runner(model), encoder, groups)
    with tempfile.TemporaryDirectory(prefix="build_engines-") as work:
        job = Job(model, Dimensions.of(encoder.config), yardstick, calibration)
        built = _build(arguments, capabilities, job, Path(work))
        report = yardstick.report(built.run, built.judged)
        report.check(built.runs_in)
        manifest = _manifest(arguments, encoder, built, report)
        if arguments.add_to_newest:
            built, manifest = _with_newest(repository / models.scorer, built, manifest)
        server_model = arguments.engine in (*LIBRARIES, "torch")
        installed = install(repository, checkpoint, built.files, manifest, server_model, models)
    print(summary.of_version(installed, manifest))
    _say_if_not_served(installed, repository)
    return installed


def _capabilities(arguments: BuildArguments) -> list[str]:
    """The compute capabilities asked for; what a build needs of its library is checked before hours of it."""
    capabilities = [part.strip() for part in arguments.compute_capability.split(",") if part.strip()]
    if arguments.engine in LIBRARIES:
        LIBRARIES[arguments.engine]()
    elif arguments.engine == "torch":
        torch_engine.check_rows(arguments.rows_per_call)
    else:
        tensorrt.library(arguments.engine)
        tensorrt.check_capabilities(arguments.engine, capabilities, arguments.precision)
    return capabilities


def _calibration(arguments: BuildArguments, groups: Sequence[QueryGroup], encoder: PairEncoder) -> Calibration | None:
    """For the precisions of 8 bits, whose gate needs labels too."""
    if arguments.precision not in CALIBRATED:
        return None
    if not judgments(groups):
        raise EngineError(
            f"{arguments.data}: no labels, and {arguments.precision} is judged by what it costs in nDCG@10"
        )
    return read_calibration(arguments.calibration, groups, encoder)


def _build(arguments: BuildArguments, capabilities: list[str], job: Job, work: Path) -> BuiltEngine:
    if arguments.engine in LIBRARIES:  # precision is chosen when the graph is read or compiled
        library = LIBRARIES[arguments.engine]()
        wish = processors.CpuWish(arguments.precision, arguments.rows_per_call, job.calibration, arguments.most_kept)
        graph = export_graph(job.model, job.dimensions, "fp32", work / "graph.onnx", library.opset, any_length=True)
        return processors.build(library, graph, wish, job.yardstick, work)
    if arguments.engine == "torch":
        rows, compiled = arguments.rows_per_call, arguments.torch_compile
        return torch_engine.build(job.model, job.dimensions, arguments.precision, rows, compiled, work)
    if job.calibration is None:
        graph = export_graph(job.model, job.dimensions, arguments.precision, work / "model.onnx")
    else:
        graph = _fp8_graph(job.model, job.dimensions, job.calibration, work)
    timings = Path(arguments.timing_cache) if arguments.timing_cache else None
    return tensorrt.build(graph, arguments.engine, capabilities, work, timings)


def _fp8_graph(model: PreTrainedModel, dimensions: Dimensions, calibration: Calibration, work: Path) -> Graph:
    try:
        from engines.quantise import fp8
    except ImportError as error:
        raise EngineError(f"--precision fp8 needs {error.name}: pip install onnx") from error
    half = export_graph(model, dimensions, fp8.BASE, work / "half.onnx", fp8.OPSET)
    return fp8.quantise(half, calibration.rows, work / "model.onnx")


def _manifest(arguments: BuildArguments, encoder: PairEncoder, built: BuiltEngine, report: ParityReport) -> Manifest:
    return Manifest(
        engine=arguments.engine,
        precision=arguments.precision,
        runs_in=built.runs_in,
        row_length=encoder.config.row_length,
        slots_per_row=encoder.config.slots_per_row,
        max_rows=encoder.config.max_documents,
        rows_per_call=built.rows_per_call,
        encoding_hash=encoding_hash(arguments.checkpoint),
        checkpoint_hash=_checkpoint_hash(Path(arguments.checkpoint)),
        versions={
            **{name: version(name) for name in ("torch", "transformers", "onnx")},
            arguments.engine: built.version,
        },
        parity=report,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=built.cpu,
        torch_compile=arguments.torch_compile if arguments.engine == "torch" else "",
        plans=dict(built.plans),
    )


def _with_newest(scorer: Path, built: BuiltEngine, manifest: Manifest) -> tuple[BuiltEngine, Manifest]:
    """The build with the plans that the newest version has for other GPUs."""
    others = carried(scorer, manifest)
    named = {capability: path.name for capability, path in others.items()}
    files = (*built.files, *others.values())
    return built._replace(files=files), replace(manifest, plans={**named, **manifest.plans})


def _checkpoint_hash(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    for path in (checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))):
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _say_if_not_served(installed: Path, repository: Path) -> None:
    served = served_version(installed.parent)
    if served != int(installed.name):
        teacher = " --teacher" if installed.parent.name == TEACHER.scorer else ""
        print(
            f"Triton is told to serve version {served}, not this one: "
            f"python -m engines.versions use latest --model_repository {repository}{teacher}"
        )


if __name__ == "__main__":
    sys.exit(main())
