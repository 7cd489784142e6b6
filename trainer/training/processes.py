"""Agreement between the processes of one training run. All of them call a function of this file, or none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def decided_by_first(decide: Callable[[], Value]) -> Value:
    """Return in all processes what ``decide`` returns in the first; raise its error in all, too.

    Files and the last digits of a metric may differ between processes, and processes that take different ways wait
    for each other for ever.
    """
    if not several():
        return decide()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    decision, refusal = answer
    if refusal is not None:
        raise refusal
    return decision  # type: ignore[no-any-return]


def highest(value: int, device: torch.device) -> int:
    """The highest ``value`` of any process."""
    if not several():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
