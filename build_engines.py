"""Compile a checkpoint into a new version of the student that Triton serves, or of the teacher.

    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine openvino --precision bf16
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine tensorrt --precision fp16
    python build_engines.py --teacher --checkpoint runs/teacher --data dev.jsonl --engine tensorrt --precision bf16

The checkpoint becomes one ONNX graph, the graph an engine. The engine is installed only if it scores
the pairs of ``--data`` as the checkpoint does in float32 (exit code 1 if not; 2 for bad input).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import transformers
from transformers import HfArgumentParser, PreTrainedModel
from transformers.hf_argparser import DataClassType

from engines import openvino, tensorrt
from engines.graph import export_graph
from engines.install import Manifest, check_repository, install
from engines.models import STUDENT, TEACHER
from engines.parity import ParityReport, compare
from engines.records import BuiltEngine, Dimensions, EngineError, ParityError
from model_repository.tokenizer.pair_encoding import EncodingError, PairEncoder, encoding_hash
from trainer.data import DataError, read_groups
from trainer.models import CheckpointError, load_scorer, require_checkpoint


@dataclass(frozen=True)
class BuildArguments:
    """What to build, for which machine, and where it goes."""

    checkpoint: str = field(metadata={"help": "Checkpoint directory of a scorer."})
    data: str = field(metadata={"help": "Query groups (JSONL, Parquet) that the engine must score as PyTorch does."})
    engine: Literal["openvino", "tensorrt", "tensorrt_rtx"] = field(metadata={"help": "What runs the student."})
    precision: Literal["fp32", "bf16", "fp16"] = field(metadata={"help": "What matrix products are computed in."})
    model_repository: str = field(default="model_repository", metadata={"help": "Made if it does not exist."})
    teacher: bool = field(default=False, metadata={"help": "Build the models of the teacher, for relabelling."})
    compute_capability: str = field(
        default="", metadata={"help": "Of the GPUs to compile for, such as 8.6,8.9 (tensorrt_rtx)."}
    )
    # Measured on two cores, throughput is the same from 1 to 32 rows a call, and memory grows with them.
    rows_per_call: int = field(default=8, metadata={"help": "Rows that OpenVINO takes at a time."})

    def __post_init__(self) -> None:
        if self.rows_per_call < 1:
            raise EngineError(f"--rows_per_call must be at least 1, not {self.rows_per_call}")
        if self.compute_capability and self.engine != "tensorrt_rtx":
            raise EngineError("--compute_capability is for --engine tensorrt_rtx; the others build for this machine")


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
    check_repository(Path(arguments.model_repository), arguments.engine)
    with tempfile.TemporaryDirectory(prefix="build_engines-") as work:
        built = _build(arguments, capabilities, model, Dimensions.of(encoder.config), Path(work))
        report = compare(built.run, built.judged, model, encoder, groups)
        report.check(built.runs_in)
        manifest = _manifest(arguments, encoder, built, report)
        server_model = arguments.engine == "openvino"
        models = TEACHER if arguments.teacher else STUDENT
        installed = install(Path(arguments.model_repository), checkpoint, built.files, manifest, server_model, models)
    print(_summary(installed, manifest))
    return installed


def _capabilities(arguments: BuildArguments) -> list[str]:
    """The compute capabilities asked for; what a build needs of its library is checked before hours of it."""
    capabilities = [part.strip() for part in arguments.compute_capability.split(",") if part.strip()]
    if arguments.engine == "openvino":
        openvino.library()
    else:
        tensorrt.library(arguments.engine)
        tensorrt.check_capabilities(arguments.engine, capabilities)
    return capabilities


def _build(
    arguments: BuildArguments, capabilities: list[str], model: PreTrainedModel, dimensions: Dimensions, work: Path
) -> BuiltEngine:
    if arguments.engine == "openvino":  # precision is chosen when the graph is compiled
        graph = export_graph(model, dimensions, "fp32", work / "model.onnx")
        return openvino.build(graph, arguments.precision, arguments.rows_per_call, work)
    graph = export_graph(model, dimensions, arguments.precision, work / "model.onnx")
    return tensorrt.build(graph, arguments.engine, capabilities, work)


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
            arguments.engine: built.version,
            **{name: version(name) for name in ("torch", "transformers", "onnx")},
        },
        parity=report,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
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
