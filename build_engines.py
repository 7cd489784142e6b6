"""Compile a checkpoint into a new version of the student that Triton serves.

    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine openvino --precision bf16
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine tensorrt --precision fp16

The checkpoint becomes one ONNX graph, the graph an engine. The engine is installed only if it scores
the pairs of ``--data`` as the checkpoint does in float32 (exit code 1 if not; 2 for bad input).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import transformers
from transformers import HfArgumentParser, PreTrainedModel
from transformers.hf_argparser import DataClassType

from engines import openvino, tensorrt, torch_engine
from engines.calibration import Calibration, read_calibration
from engines.graph import export_graph
from engines.install import Manifest, check_repository, install
from engines.parity import ParityReport, compare
from engines.plans import carried
from engines.records import BuiltEngine, Dimensions, EngineError, Graph, ParityError
from model_repository.tokenizer.pair_encoding import EncodingError, PairEncoder, encoding_hash
from trainer.data import DataError, read_groups
from trainer.models import CheckpointError, load_scorer, require_checkpoint


@dataclass(frozen=True)
class BuildArguments:
    """What to build, for which machine, and where it goes."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory of a scorer."})
    data: str = field(metadata={"help": "Query groups (JSONL, Parquet) that the engine must score as PyTorch does."})
    engine: Literal["openvino", "tensorrt", "tensorrt_rtx", "torch"] = field(
        metadata={"help": "What runs the student."}
    )
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = field(
        metadata={"help": "What matrix products are computed in."}
    )
    model_repository: str = field(default="model_repository", metadata={"help": "Made if it does not exist."})
    compute_capability: str = field(
        default="", metadata={"help": "Of the GPUs to compile for, such as 8.6,8.9 (tensorrt_rtx)."}
    )
    calibration: list[str] = field(
        default_factory=list,
        metadata={"help": "Queries with documents like the traffic's, none of them in --data, for fp8's ranges."},
    )
    timing_cache: str = field(
        default="", metadata={"help": "File for what tensorrt measured; by default in ~/.cache/disranker."}
    )
    add_to_newest: bool = field(
        default=False,
        metadata={"help": "The new version has the newest one's plans too: for other GPUs, of the same checkpoint."},
    )
    # Measured on two cores, throughput is the same from 1 to 32 rows a call, and memory grows with them.
    rows_per_call: int = field(default=8, metadata={"help": "Rows that openvino and torch take at a time."})
    torch_compile: Literal["gpu", "always", "never"] = field(
        default="gpu",
        metadata={"help": "Where the server compiles --engine torch: on a GPU, on processors too, nowhere."},
    )

    def __post_init__(self) -> None:
        if self.rows_per_call < 1:
            raise EngineError(f"--rows_per_call must be at least 1, not {self.rows_per_call}")
        if self.compute_capability and self.engine != "tensorrt_rtx":
            raise EngineError("--compute_capability is for --engine tensorrt_rtx; the others build for this machine")
        if self.precision == "fp8" and not self.engine.startswith("tensorrt"):
            raise EngineError(f"--precision fp8 is for --engine tensorrt, not {self.engine}")
        if self.calibration and self.precision != "fp8":
            raise EngineError(f"--calibration is for --precision fp8; {self.precision} needs none")
        if self.add_to_newest and not self.engine.startswith("tensorrt"):
            raise EngineError("--add_to_newest is for --engine tensorrt, whose plans are of one kind of GPU each")
        if self.timing_cache and self.engine != "tensorrt":
            raise EngineError("--timing_cache is for --engine tensorrt; the others measure nothing when they build")


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
    checkpoint = Path(arguments.checkpoint)
    require_checkpoint(checkpoint)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: no checkpoint here (it has no config.json)")
    encoder = PairEncoder.load(checkpoint)
    model = load_scorer(checkpoint, encoder)
    groups = read_groups(arguments.data)
    calibration = read_calibration(arguments.calibration, groups, encoder) if arguments.precision == "fp8" else None
    check_repository(Path(arguments.model_repository), arguments.engine)
    with tempfile.TemporaryDirectory(prefix="build_engines-") as work:
        built = _build(arguments, capabilities, model, Dimensions.of(encoder.config), Path(work), calibration)
        report = compare(built.run, built.judged, model, encoder, groups)
        report.check(built.runs_in)
        manifest = _manifest(arguments, encoder, built, report)
        server_model = arguments.engine in ("openvino", "torch")
        files = list(built.files)
        if arguments.add_to_newest:
            others = carried(Path(arguments.model_repository) / "student", manifest)
            files += others.values()
            named = {capability: path.name for capability, path in others.items()}
            manifest = replace(manifest, plans={**named, **manifest.plans})
        installed = install(Path(arguments.model_repository), checkpoint, files, manifest, server_model)
    print(_summary(installed, manifest))
    return installed


def _capabilities(arguments: BuildArguments) -> list[str]:
    """The compute capabilities asked for; what a build needs of its library is checked before hours of it."""
    capabilities = [part.strip() for part in arguments.compute_capability.split(",") if part.strip()]
    if arguments.engine == "openvino":
        openvino.library()
    elif arguments.engine == "torch":
        torch_engine.check_rows(arguments.rows_per_call)
    else:
        tensorrt.library(arguments.engine)
        tensorrt.check_capabilities(arguments.engine, capabilities, arguments.precision)
    return capabilities


def _build(
    arguments: BuildArguments,
    capabilities: list[str],
    model: PreTrainedModel,
    dimensions: Dimensions,
    work: Path,
    calibration: Calibration | None,
) -> BuiltEngine:
    if arguments.engine == "openvino":  # precision is chosen when the graph is compiled
        graph = export_graph(model, dimensions, "fp32", work / "model.onnx")
        return openvino.build(graph, arguments.precision, arguments.rows_per_call, work)
    if arguments.engine == "torch":
        rows, compiled = arguments.rows_per_call, arguments.torch_compile
        return torch_engine.build(model, dimensions, arguments.precision, rows, compiled, work)
    if calibration is None:
        graph = export_graph(model, dimensions, arguments.precision, work / "model.onnx")
    else:
        graph = _fp8_graph(model, dimensions, calibration, work)
    timings = Path(arguments.timing_cache) if arguments.timing_cache else None
    return tensorrt.build(graph, arguments.engine, capabilities, work, timings)


def _fp8_graph(model: PreTrainedModel, dimensions: Dimensions, calibration: Calibration, work: Path) -> Graph:
    try:
        from engines import fp8
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
        rows_per_call=arguments.rows_per_call,
        encoding_hash=encoding_hash(arguments.checkpoint),
        checkpoint_hash=_checkpoint_hash(Path(arguments.checkpoint)),
        versions={
            **{name: version(name) for name in ("torch", "transformers", "onnx")},
            arguments.engine: built.version,
        },
        parity=report,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        torch_compile=arguments.torch_compile if arguments.engine == "torch" else "",
        plans=dict(built.plans),
    )


def _checkpoint_hash(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    for path in (checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))):
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _summary(installed: Path, manifest: Manifest) -> str:
    size = sum(path.stat().st_size for path in installed.iterdir() if path.name.startswith("model."))
    report = manifest.parity
    ndcg = "no labels" if report.ndcg_difference is None else f"{report.ndcg_difference:+.4f}"
    lines = [
        f"{installed}: {manifest.engine}, {manifest.runs_in}, {size / 1e6:.1f} MB",
        f"compared with PyTorch in float32 on {report.pairs} pairs of {report.queries} queries: "
        f"scores within {report.largest_difference:.2g}, Kendall's tau {report.mean_kendall_tau:.4f}, nDCG@10 {ndcg}",
        f"compared was {report.judged}",
    ]
    if manifest.runs_in != manifest.precision:
        lines.append(f"{manifest.precision} was asked for; this processor has no units for it, so it runs in fp32")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
