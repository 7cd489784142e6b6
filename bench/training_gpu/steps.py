"""What the steps of an item brought and how long they took, and the figures that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bench.spread import Spread
from bench.training_gpu.records import Machine, Result, Timing
from trainer.measures.costs import Shape, Work, flops_per_token
from trainer.training.batches import IGNORED


class StepClock(TrainerCallback):
    """Seconds of a step in each round, data loading and optimiser included."""

    def __init__(self, machine: Machine, timing: Timing) -> None:
        self._machine, self._timing = machine, timing
        self._marks: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._machine.forget()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        done = state.global_step - self._timing.warmup
        if done >= 0 and done % self._timing.repeats == 0:
            self._marks.append(self._machine.now())

    def seconds(self) -> list[float]:
        return [(end - start) / self._timing.repeats for start, end in pairwise(self._marks)]


class Seen:
    """A hook before the model's forward: what each step brought. Counts stay on the device until the end, so that
    nothing waits for them."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self._filled: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._bearing: list[Tensor] = []
        self._pairs: list[Tensor] = []

    def __call__(self, model: Any, positional: Any, inputs: dict[str, Tensor]) -> None:
        segment_ids = inputs["segment_ids"]
        self.slots.append(segment_ids.numel())
        self._filled.append((segment_ids > 0).sum())
        self._pairs.append(segment_ids.amax(dim=1).sum())
        # A token's place in its pair, from 0: their sum is that of n (n - 1) / 2 over the pairs of n tokens.
        places = torch.where(segment_ids > 0, inputs["position_ids"], 0)
        self._squares.append(2 * places.sum() + (segment_ids > 0).sum())
        if "labels" in inputs:
            self._bearing.append((inputs["labels"] != IGNORED).sum())

    @property
    def fill(self) -> float:
        """Share of the slots that hold a token."""
        return _total(self._filled) / sum(self.slots)

    @property
    def pair_tokens(self) -> float:
        return _total(self._filled) / _total(self._pairs)

    @property
    def attended(self) -> float:
        """Tokens of its own pair, for a slot on average: what attention has to look at."""
        return _total(self._squares) / sum(self.slots)

    @property
    def bearing(self) -> float:
        """Share of the slots whose logits are computed (1 for a scorer)."""
        return _total(self._bearing) / sum(self.slots) if self._bearing else 1.0


def _total(counts: Sequence[Tensor]) -> float:
    return float(sum(int(count) for count in counts))


def figures(shape: Shape, work: Work, seconds: Sequence[float], seen: Seen, timing: Timing, machine: Machine) -> Result:
    """Of an item whose steps took ``seconds``, a round each.

    FLOPs are those of ``flops_per_token``: attention over whole rows, as the mask hides pairs from each other but SDPA
    computes them. The vocabulary's matrix counts for tokens that bear loss, as its logits are made for them alone.
    What checkpointing computes twice is in ``computed_tflops`` only.
    """
    rounds = range(timing.warmup, timing.runs, timing.repeats)
    slots = [sum(seen.slots[start : start + timing.repeats]) / timing.repeats for start in rounds]
    speeds = [count / each for count, each in zip(slots, seconds, strict=True)]
    speed = Spread.of(speeds).median
    counted = replace(shape, head=round(shape.head * seen.bearing)) if shape.vocabulary else shape
    once = replace(work, checkpointing=False)
    within_pairs = replace(once, row_length=round(seen.attended))
    return Result(
        "measured",
        tokens_per_second=Spread.of(speeds),
        tflops=Spread.of([each * flops_per_token(counted, once) / 1e12 for each in speeds]),
        peak_gib=machine.peak_gib(),
        details={
            "computed_tflops": speed * flops_per_token(counted, work) / 1e12,
            "tflops_with_attention_within_pairs": speed * flops_per_token(counted, within_pairs) / 1e12,
            "rows_of_a_step": sum(seen.slots) / len(seen.slots) / work.row_length,
            "row_fill": seen.fill,
            "pair_tokens": seen.pair_tokens,
            "pairs_per_second": speed * seen.fill / seen.pair_tokens,
        },
    )
