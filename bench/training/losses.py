"""Time and memory of the objectives by the documents of a step, forward and backward, on one thread.

    python -m bench.training.losses

Every measurement is a process of its own: its memory is the growth of the process's peak.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch
from rich.table import Table

from trainer.command import command, console_of
from trainer.training import losses

DOCUMENTS = (12_800, 32_000, 128_000)  # of a step, over all processes
OF_A_QUERY = 50
OBJECTIVES = ("pairwise_logistic", "lambda_rank", "margin_mse", "adr_mse", "list_mle", "kl_divergence", "pointwise_mse")
REPETITIONS = 5


@command
def main(argv: Sequence[str] | None = None) -> None:
    del argv
    table = Table(title=f"{OF_A_QUERY} documents a query; median of {REPETITIONS}, peak of the process")
    for heading in ("objective", *(f"{count:,} documents" for count in DOCUMENTS)):
        table.add_column(heading, justify="left" if heading == "objective" else "right")
    context = multiprocessing.get_context("spawn")
    for name in OBJECTIVES:
        cells = []
        for count in DOCUMENTS:
            with context.Pool(1) as pool:
                seconds, bytes_ = pool.apply(measured, (name, count))
            cells.append(f"{1000 * seconds:,.0f} ms, {bytes_ / 2**20:,.0f} MiB")
        table.add_row(name, *cells)
    console_of(120).print(table)


def measured(name: str, count: int) -> tuple[float, int]:
    """Median seconds of a step's loss and gradient, and the bytes by which it raised the peak of this process."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(count, generator=draw).requires_grad_()
    targets = torch.randn(count, generator=draw)
    groups = torch.arange(count // OF_A_QUERY).repeat_interleave(OF_A_QUERY)
    objective = getattr(losses, name)
    seconds = []
    _step(objective, student[:500].detach().requires_grad_(), targets[:500], groups[:500])  # loads the kernels
    before = _peak()
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        _step(objective, student, targets, groups)
        seconds.append(time.perf_counter() - began)
    return median(seconds), _peak() - before


def _step(objective: object, student: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor) -> None:
    total, weight = losses.mean_over_queries(objective(student, targets, groups))  # type: ignore[operator]
    torch.autograd.backward(total / weight)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
