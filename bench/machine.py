"""The machine, on which the figures of a bench depend."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """The properties of the machine that the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text(encoding="ascii").split()[1]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "bf16_units": bf16_units(),
        "memory_gib": round(int(memory) / 2**20, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def described(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    units = "bf16 units" if machine["bf16_units"] else "no bf16 units"
    return f"{machine['cpu']}, {machine['cores']} cores, {units}"


def bf16_units() -> bool:
    """Tell whether PyTorch has fast kernels for bf16 matrices on this processor. Otherwise it uses plain loops."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
