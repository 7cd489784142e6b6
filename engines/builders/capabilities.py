"""Compute capabilities: the kinds of GPU that plans are built for, written as NVIDIA writes them (8.9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engines.records import EngineError

NEEDED = {"bf16": "8.0", "fp8": "8.9"}  # from which on a GPU has units for a precision


def here() -> str | None:
    """The compute capability of the GPU that PyTorch sees."""
    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def targets(named: Sequence[str]) -> list[str | None]:
    """The compute capabilities that were named, else that of the GPU at hand."""
    return list(named) or [here()]


def plan_file(capability: str | None) -> str:
    """``model.sm89.plan`` for 8.9; ``model.plan`` where PyTorch sees no GPU."""
    return "model.plan" if capability is None else f"model.sm{capability.replace('.', '')}.plan"


def check_units(named: Sequence[str], precision: str) -> None:
    """Raises EngineError for a GPU without units for the precision."""
    needed = NEEDED.get(precision)
    for capability in targets(named):
        if needed and capability and _number(capability) < _number(needed):
            raise EngineError(
                f"--precision {precision} needs compute capability {needed} or newer; {capability} has no units for it"
            )


def member(trt: Any, capability: str) -> Any:
    """The library's own name of a compute capability. Raises EngineError that lists the known ones."""
    members = trt.ComputeCapability.__members__
    found = members.get("SM" + capability.replace(".", ""))
    if found is None:
        known = sorted(int(name[2:]) for name in members if name.startswith("SM"))
        listed = ", ".join(f"{number // 10}.{number % 10}" for number in known)
        raise EngineError(f"compute capability {capability!r} is not one that {trt.__name__} knows: {listed}")
    return found


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
