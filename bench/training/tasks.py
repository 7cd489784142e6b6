"""The three tasks that are compared, with their systems, data and steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report import bf16_units
from bench.training.job import Group, Job, Shape
from bench.training.material import Lengths, clicked_once, enough, graded
from bench.training.rounds import System, Task

OURS = Path(sys.executable)
WORKERS = "bench.training.workers"
ROW = 256  # tokens of a row, ours and trl's shorter one


@dataclass(frozen=True)
class Load:
    """The amount of data that a task takes."""

    groups: Sequence[Group]
    queries: int  # of a step
    steps: int
    rounds: int

    def job(self, checkpoint: str, precision: str = "fp32", warm_up: int = 1) -> Job:
        # One step more than is trained: the loop collates one batch ahead, in every step that counts.
        count = self.queries * (warm_up + self.steps + 1)
        return Job(
            checkpoint, enough(self.groups, count), Shape(self.queries, self.queries), self.steps, precision, warm_up
        )


def student_task(
    checkpoint: str, load: Load, precision: str, sentence_transformers: Path | None, transformers: Path | None
) -> Task:
    """Distillation by margin MSE. Without bf16 units a bf16 step takes minutes: there it is one step of one query."""
    job = load.job(checkpoint, precision)
    if precision == "bf16" and not bf16_units():
        load = replace(load, queries=1, steps=1, rounds=min(load.rounds, 2))
        job = load.job(checkpoint, precision, warm_up=0)
    shapes = divided(load.queries)
    systems = [_ours("distil", load)]
    if sentence_transformers:
        systems.append(System("sentence-transformers", sentence_transformers, (f"{WORKERS}.cross_encoder",), shapes))
    if transformers:
        systems.append(System("transformers, padded", transformers, (f"{WORKERS}.flat",), shapes))
    return Task("distillation", job, tuple(systems), load.rounds)


def _ours(job: str, load: Load) -> System:
    shapes = divided(load.queries)[-2:]
    return System("ours", OURS, (f"{WORKERS}.ours", job), shapes, check=shapes[-1])


def pretraining_task(checkpoint: str, load: Load, pairs: Lengths, trl: Path) -> Task:
    """Continued pre-training. trl packs before the loop, and its step has about as many tokens as ours."""
    load = replace(load, groups=clicked_once(load.groups))
    job = load.job(checkpoint)
    tokens = pairs.mean * load.queries * len(load.groups[0].documents)
    rows = max(2, 2 * round(tokens / ROW / 2))
    long_rows = max(1, round(rows / 4))
    shapes = (
        Shape(1, rows, f"bfd {ROW}"),
        Shape(1, long_rows, f"bfd {4 * ROW}"),
        Shape(rows // 2, rows, f"wrapped {ROW}"),
        Shape(rows, rows, f"wrapped {ROW}"),
    )
    steps = job.warm_up + job.steps
    # Packed rows are not quite full, and there must be one step more than is trained.
    job = replace(job, groups=enough(load.groups, 2 + round(load.queries * (steps + 1) * 1.3)))
    check = replace(job, groups=enough(load.groups, load.queries), steps=1, speed_counts=False)
    return Task(
        "continued pre-training",
        job,
        (
            _ours("pretrain", load),
            System("trl SFTTrainer, packing", trl, (f"{WORKERS}.sft",), shapes, check=Shape(1, 4 * rows, f"bfd {ROW}")),
        ),
        load.rounds,
        check,
    )


def rank_task(checkpoint: str, load: Load, trl: Path) -> Task:
    """Rank fine-tuning. The step of trl has as many comparisons as our number of documents makes."""
    job = load.job(checkpoint)
    job = replace(job, groups=graded(job.groups))
    comparisons = load.queries * len(load.groups[0].documents) // 2
    together = Shape(load.queries, load.queries)
    two = tuple(_two(group) for group in graded(enough(load.groups, 3 * load.queries)))
    check = replace(job, groups=two, steps=1, speed_counts=False)
    return Task(
        "rank fine-tuning",
        job,
        (
            _ours("rank", load),
            System("trl RewardTrainer", trl, (f"{WORKERS}.reward",), divided(comparisons)[-3:], check=together),
        ),
        load.rounds,
        check,
    )


def _two(group: Group) -> Group:
    """The group's best and worst document: one comparison."""
    places = (group.targets.index(max(group.targets)), group.targets.index(min(group.targets)))
    return Group(
        group.query, tuple(group.documents[place] for place in places), tuple(group.targets[place] for place in places)
    )


def divided(step: int) -> tuple[Shape, ...]:
    """A step in forward passes of equal size, the smallest first."""
    return tuple(Shape(count, step) for count in range(1, step + 1) if step % count == 0)
