"""What ``build_engines.py`` says of a version that it has installed."""

from __future__ import annotations

from pathlib import Path

from engines.records import CpuEngine
from engines.repository.install import Manifest


def of_version(installed: Path, manifest: Manifest) -> str:
    """Lines: what it is, how it compares with its checkpoint, what was chosen for this machine."""
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
        lines.append(
            f"{manifest.precision} was asked for; this processor has no units for it, so it runs in {manifest.runs_in}"
        )
    return "\n".join([*lines, *(_of_cpu(manifest.cpu, manifest.rows_per_call) if manifest.cpu else [])])


def _of_cpu(cpu: CpuEngine, rows_per_call: int) -> list[str]:
    lines = []
    if cpu.int8:
        kept = f"; kept in {cpu.rest_in} for the gate: {', '.join(cpu.int8.kept)}" if cpu.int8.kept else ""
        lines.append(f"{cpu.int8.products} products in int8, all else in {cpu.rest_in}{kept}")
    speeds = ", ".join(f"{timing.rows_per_call}: {timing.rows_per_second:.4g}" for timing in cpu.measured)
    lines.append(f"rows per second by rows per call: {speeds}")
    lines.append(f"chosen: {rows_per_call} rows per call, on {cpu.threads} threads")
    return lines
