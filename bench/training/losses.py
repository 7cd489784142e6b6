"""Time and memory of the objectives by the documents of a step, forward and backward, on one thread.

python -m bench.training.losses
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bench.memory import Peak
from trainer.command import command, console_of, parse
from trainer.training import losses

OBJECTIVES = ("pairwise_logistic", "lambda_rank", "margin_mse", "adr_mse", "list_mle", "kl_divergence", "pointwise_mse")
REPETITIONS = 5


@dataclass
class LossesArguments:
    """The steps to measure."""

    documents: list[int] = field(
        default_factory=lambda: [12_800, 32_000, 128_000], metadata={"help": "Documents of a step."}
    )
    of_a_query: int = field(default=50, metadata={"help": "How many of them belong to one query."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, LossesArguments)
    table = Table(title=f"{arguments.of_a_query} documents a query; median of {REPETITIONS}, peak of the tensors")
    for heading in ("objective", *(f"{count:,} documents" for count in arguments.documents)):
        table.add_column(heading, justify="left" if heading == "objective" else "right")
    torch.set_num_threads(1)
    for name in OBJECTIVES:
        cells = []
        for count in arguments.documents:
            seconds, bytes_ = measured(name, count, arguments.of_a_query)
            cells.append(f"{1000 * seconds:,.0f} ms, {bytes_ / 2**20:,.0f} MiB")
        table.add_row(name, *cells)
    console_of(120).print(table)


def measured(name: str, count: int, of_a_query: int) -> tuple[float, int]:
    """Median seconds of a step's loss and gradient, and the most bytes that its tensors take at once."""
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(count, generator=draw).requires_grad_()
    targets = torch.randn(count, generator=draw)
    groups = torch.arange(count) // of_a_query
    objective, seconds = getattr(losses, name), []
    with Peak() as peak:
        _step(objective, student, targets, groups)
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        _step(objective, student, targets, groups)
        seconds.append(time.perf_counter() - began)
    return median(seconds), peak.bytes


def _step(objective: Any, student: Tensor, targets: Tensor, groups: Tensor) -> None:
    each = objective(student, targets, groups)
    total, weight = losses.mean_over_queries(each, torch.ones_like(each.losses))
    torch.autograd.backward(total / weight)


if __name__ == "__main__":
    sys.exit(main())
