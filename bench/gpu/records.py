"""The result of an item, the clock of the machine, and the file that keeps all results."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bench.report import Spread
from trainer.data.records import DataError

GIB = 2**30
Floats = NDArray[np.float64]
Outcome = Literal["measured", "out of memory", "absent", "failed"]


class AbsentError(Exception):
    """This machine lacks a kernel or a library. The message names it."""


@dataclass(frozen=True)
class Result:
    """The figures of one item. ``reason`` tells why there are none."""

    outcome: Outcome
    reason: str = ""
    tokens_per_second: Spread | None = None  # token slots of the rows, empty ones included
    tflops: Spread | None = None  # of the model, attention over whole rows, nothing computed twice
    milliseconds: Spread | None = None
    peak_gib: float | None = None
    details: dict[str, float | str] = field(default_factory=dict)

    @classmethod
    def timed(
        cls, machine: Machine, seconds: Floats, tokens: float | Floats | None = None,
        flops: float | Floats | None = None, **details: float | str,
    ) -> Result:  # fmt: skip
        """A result from the ``seconds`` of a run in each round, and the token slots and operations of such a run."""
        speed, rate = (
            None if each is None else Spread.of((each / seconds).tolist())
            for each in (tokens, None if flops is None else flops / 1e12)
        )
        return cls("measured", "", speed, rate, Spread.of((1000 * seconds).tolist()), machine.peak_gib(), details)


@dataclass(frozen=True)
class Timing:
    """``warmup`` runs, then ``rounds`` of ``repeats`` runs. Each round is timed as a whole."""

    warmup: int
    rounds: int
    repeats: int

    @property
    def runs(self) -> int:
        return self.warmup + self.rounds * self.repeats


@dataclass(frozen=True)
class Machine:
    """The device that the items run on."""

    device: torch.device

    @classmethod
    def of(cls, name: str) -> Machine:
        """Raises DataError unless the device is a processor or the only visible GPU: the Trainer would use all."""
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise DataError(f"--device {name}: use cuda, or cpu to try the bench")
        if device.type == "cuda" and torch.cuda.device_count() != 1:
            raise DataError(
                f"--device {name}: {torch.cuda.device_count()} GPUs are visible, one is needed "
                "(CUDA_VISIBLE_DEVICES=0 shows one; --device cpu --quick tries the bench itself)"
            )
        return cls(device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.on_gpu else self.device.type

    def now(self) -> float:
        """Seconds, once everything that was started on the device is done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def forget(self) -> None:
        """Free the memory of earlier items, and measure the peak from here."""
        if self.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.on_gpu else None

    def seconds(self, run: Callable[[], object], timing: Timing) -> Floats:
        """Seconds of one run, for each round."""
        for _ in range(timing.warmup):
            run()
        rounds = []
        for _ in range(timing.rounds):
            started = self.now()
            for _ in range(timing.repeats):
                run()
            rounds.append((self.now() - started) / timing.repeats)
        return np.array(rounds)


def read_record(path: Path, setting: dict[str, str]) -> dict[str, Any]:
    """The file of results, with ``setting``, ``commands`` and ``items``, or a new one.

    A setting is the device, the sizes and the versions, without which figures cannot be compared. Raises DataError for
    a file with another one, or of something else.
    """
    if not path.exists():
        return {"setting": setting, "commands": [], "items": {}}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        record = {"setting": setting, "commands": [*saved["commands"]], "items": {**saved["items"]}}
        differing = {key: value for key, value in saved["setting"].items() if setting.get(key) != value}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: these are not results of this bench ({error}); remove the file") from error
    if differing:
        raise DataError(f"{path}: it has {differing}, but here is {setting}: give another --output")
    return record
