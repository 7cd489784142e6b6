"""What an item of the bench leaves, how time is taken, and the file that keeps the results."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bench.spread import Spread
from client.files import appears_whole
from trainer.data.records import DataError

GIB = 2**30
USABLE = 0.9  # of a GPU's memory; the CUDA context and fragmentation need the rest

Outcome = Literal["measured", "out of memory", "skipped", "absent", "failed"]


class AbsentError(Exception):
    """A kernel that this machine does not have; the message says which."""


class DoesNotFitError(Exception):
    """An item whose planned memory is above that of the GPU; the message has the figures."""


@dataclass(frozen=True)
class Result:
    """What one item showed; ``reason`` says why there are no figures."""

    outcome: Outcome
    reason: str = ""
    tokens_per_second: Spread | None = None  # token slots of the rows, empty ones included
    tflops: Spread | None = None  # of the model, attention over whole rows, nothing computed twice
    milliseconds: Spread | None = None  # attention: forward and backward of one layer
    peak_gib: float | None = None
    details: dict[str, float | str] = field(default_factory=dict)

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Result:
        spreads = {name: Spread(**value) for name, value in saved.items() if name != "details" and _is_spread(value)}
        return cls(**{**saved, **spreads})


def _is_spread(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"median", "low", "high"}


@dataclass(frozen=True)
class Timing:
    """``warmup`` runs, then ``rounds`` of ``repeats``, each round timed as a whole."""

    warmup: int
    rounds: int
    repeats: int

    @property
    def runs(self) -> int:
        return self.warmup + self.rounds * self.repeats


@dataclass(frozen=True)
class Machine:
    """Where the items run; ``memory`` in bytes, None where no limit is known (a CPU)."""

    device: torch.device
    memory: int | None

    @classmethod
    def of(cls, name: str) -> Machine:
        """Raises DataError for a device that is not there, and where there are several GPUs: the Trainer would take
        them all."""
        device = torch.device(name)
        if device.type == "cpu":
            return cls(device, None)
        if device.type != "cuda":
            raise DataError(f"--device {name}: cuda, or cpu to try the bench")
        if torch.cuda.device_count() != 1:
            raise DataError(
                f"--device {name}: {torch.cuda.device_count()} GPUs are visible, one is needed "
                "(CUDA_VISIBLE_DEVICES=0 shows one; --device cpu --quick tries the bench itself)"
            )
        return cls(device, torch.cuda.get_device_properties(device).total_memory)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def now(self) -> float:
        """Seconds, after all that was started on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def forget(self) -> None:
        """Give memory of earlier items back, and measure the peak from here."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def held_gib(self) -> float:
        return torch.cuda.memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    def peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else None

    def seconds(self, run: Callable[[], object], timing: Timing) -> list[float]:
        """Seconds of each round for one run."""
        for _ in range(timing.warmup):
            run()
        rounds = []
        for _ in range(timing.rounds):
            started = self.now()
            for _ in range(timing.repeats):
                run()
            rounds.append((self.now() - started) / timing.repeats)
        return rounds


@dataclass
class Results:
    """The file: items that are in it need not run again. Raises DataError for one of another machine or size."""

    path: Path
    setting: dict[str, str]  # device, sizes, versions: what makes figures comparable
    commands: list[str] = field(default_factory=list)
    items: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            setting, self.commands = saved["setting"], saved["commands"]
            self.items = {name: Result.read(value) for name, value in saved["items"].items()}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}: no results of this bench ({error}); remove it") from error
        differing = sorted(key for key in setting.keys() | self.setting if setting.get(key) != self.setting.get(key))
        if differing:
            key = differing[0]
            raise DataError(
                f"{self.path}: its {key} is {setting.get(key)}, here it is {self.setting.get(key)}: "
                "give another --output"
            )

    def lacks(self, item: str) -> bool:
        """Whether it is still to be run; what failed is tried again."""
        return item not in self.items or self.items[item].outcome == "failed"

    def save(self, shares: dict[str, float]) -> None:
        record = {
            "setting": self.setting,
            "commands": self.commands,
            "shares_of_ceiling": shares,
            "items": {name: asdict(result) for name, result in self.items.items()},
        }
        with appears_whole(self.path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
