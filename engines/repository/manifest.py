"""``manifest.json`` describes an installed version and how it was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.parity import ParityReport
from engines.records import CpuEngine, Dimensions, EngineError, Trial
from engines.table import COMMON_PACKAGES, ENGINES
from model_repository.student.served import versions_of
from model_repository.tokenizer.pair_encoding import encoding_hash
from trainer.measures.metrics import MEASURE

if TYPE_CHECKING:  # it loads PyTorch, which whoever chooses or lists versions can do without
    from engines.builders import Judged

MANIFEST_FILE = "manifest.json"
SAME_FOR_ALL_PLANS = (
    "engine", "precision", "runs_in", "row_length", "slots_per_row", "max_rows", "encoding_hash", "checkpoint_hash",
)  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """The manifest of a version; hashes are SHA-256.

    pool_last, position_offset: how pairs lie in rows, see ``Layout``.
    precision: what was asked for.
    runs_in: what products are computed in.
    versions: the releases of the packages that built it.
    cpu: only for engines on processors.
    torch_compile: where the torch engine is compiled, "" for the others.
    plans: TensorRT's files by compute capability.
    served_by: "MODULE.CLASS" of the class in the student's runtime/ that runs the engine, "" for a plan.
    vocabulary: how many token ids the engine knows, 0 where it is not said.
    tried: the engines that ``--engine auto`` chose from, empty where one was asked for.
    files: SHA-256 of the engine's files by name; the installer fills it in.
    """

    engine: str
    precision: str
    runs_in: str
    row_length: int
    slots_per_row: int
    max_rows: int
    rows_per_call: int
    encoding_hash: str
    checkpoint_hash: str
    versions: dict[str, str]
    parity: ParityReport
    created: str
    cpu: CpuEngine | None = None
    torch_compile: str = ""
    plans: dict[str, str] = field(default_factory=dict)
    served_by: str = ""
    pool_last: bool = False
    position_offset: int = 0
    vocabulary: int = 0
    tried: tuple[Trial, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, judged: Judged, tried: tuple[Trial, ...] = ()) -> Manifest:
        job, built, report = judged
        arguments, engine = job.arguments, ENGINES[job.arguments.engine]
        return cls(
            engine=engine.name,
            precision=arguments.precision,
            runs_in=built.runs_in,
            **asdict(job.dimensions),
            rows_per_call=built.rows_per_call,
            encoding_hash=encoding_hash(arguments.checkpoint),
            checkpoint_hash=_checkpoint_hash(Path(arguments.checkpoint)),
            versions={
                **{name: metadata.version(name) for name in (*COMMON_PACKAGES, *engine.packages)},
                engine.name: built.version,
            },
            parity=report,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            cpu=built.cpu,
            torch_compile=arguments.torch_compile if engine.name == "torch" else "",
            plans=dict(built.plans),
            served_by=engine.served_by,
            vocabulary=job.model.config.vocab_size,
            tried=tried,
        )

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions(self.row_length, self.slots_per_row, self.max_rows, self.pool_last, self.position_offset)

    @property
    def identity(self) -> str:
        """Everything that decides the scores of a version, in words."""
        rest = ""
        if self.cpu and self.cpu.int8:
            rest = f", all else{''.join(f' and {name}' for name in self.cpu.int8.kept)} in {self.cpu.rest_in},"
        return (
            f"{self.engine} in {self.runs_in}{rest} of checkpoint {self.checkpoint_hash}, encoding {self.encoding_hash}"
        )

    def written(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def summary(self) -> list[str]:
        """Lines: how it compares with its checkpoint, and what was chosen for this machine."""
        report = self.parity
        ndcg = "no labels" if report.ndcg_difference is None else f"{report.ndcg_difference:+.4f}"
        lines = [
            f"compared with PyTorch in float32 on {report.pairs} pairs of {report.queries} queries: scores within "
            f"{report.largest_difference:.2g}, Kendall's tau {report.mean_kendall_tau:.4f}, {MEASURE} {ndcg}",
            f"compared was {report.judged}",
        ]
        if self.runs_in != self.precision:
            lines.append(
                f"{self.precision} was asked for; this processor has no units for it, so it runs in {self.runs_in}"
            )
        if self.cpu and self.cpu.int8:
            kept = self.cpu.int8.kept
            for_gate = f"; kept in {self.cpu.rest_in} for the gate: {', '.join(kept)}" if kept else ""
            lines.append(f"{self.cpu.int8.products} products in int8, all else in {self.cpu.rest_in}{for_gate}")
        if self.cpu:
            speeds = ", ".join(f"{timing.rows_per_call}: {timing.rows_per_second:.4g}" for timing in self.cpu.measured)
            lines.append(f"rows per second by rows per call: {speeds}")
            lines.append(f"chosen: {self.rows_per_call} rows per call, on {self.cpu.threads} threads")
        return lines


def read_manifest(version: Path) -> dict[str, Any]:
    """The manifest of an installed version. Raises EngineError for a directory without one."""
    path = version / MANIFEST_FILE
    if not path.is_file():
        raise EngineError(f"{version}: no such version; see python -m engines.versions list")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def with_newest_plans(scorer: Path, files: Sequence[Path], manifest: Manifest) -> tuple[tuple[Path, ...], Manifest]:
    """The files and the manifest of a build, with the newest version's plans for GPUs that the build has none for.

    Each plan is built on its own kind of GPU, so a version for several is gathered build by build. Raises EngineError
    unless the newest version is of the same checkpoint, precision and TensorRT.
    """
    versions = versions_of(scorer)
    if not versions:
        raise EngineError(f"{scorer}: no version to add to; build without --add_to_newest first")
    newest = scorer / str(versions[-1])
    before, now = read_manifest(newest), asdict(manifest)
    pairs = [(name, before[name], now[name]) for name in SAME_FOR_ALL_PLANS]
    pairs.append((f"{manifest.engine} version", *(each["versions"].get(manifest.engine) for each in (before, now))))
    for name, had, has in pairs:
        if had != has:
            raise EngineError(
                f"{newest}: its {name} is {had} and that of this build is {has}: "
                "plans of one version are of the same; build without --add_to_newest"
            )
    others = {capability: file for capability, file in before["plans"].items() if capability not in manifest.plans}
    plans = {**others, **manifest.plans}
    return (*files, *(newest / file for file in others.values())), replace(manifest, plans=plans)


def _checkpoint_hash(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    for path in (checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))):
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
