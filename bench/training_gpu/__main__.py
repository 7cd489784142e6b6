"""How fast the stages train and score on one GPU, and what share of its matrix speed that is.

    python -m bench.training_gpu --output bench/results/training-gpu.json --minutes 9

Every item is written as soon as it is there; the same command again goes on with those that are missing.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import peft
import torch
import transformers
from rich.table import Table
from tqdm import tqdm

from bench.spread import Spread
from bench.training_gpu.attention import KERNELS, attention
from bench.training_gpu.ceiling import SQUARE, own_matrices, square
from bench.training_gpu.records import AbsentError, DoesNotFitError, Machine, Result, Results
from bench.training_gpu.sizes import FULL, QUICK, Sizes
from bench.training_gpu.stages import Training, score, train
from trainer.command import command, console_of, parse
from trainer.data.records import DataError
from trainer.training.memory import OutOfMemoryError, naming_flags

Item = Callable[[Sizes, Machine], Result]

GOALS = {"cpt/7b/lora": 0.5, "rank-sft/7b/lora": 0.5, "score/7b/bf16": 0.65, "distill/bert6": 0.4}


@dataclass
class GpuArguments:
    """What to measure, and where the results go."""

    output: str = field(default="bench/results/training-gpu.json", metadata={"help": "JSON file with the results."})
    quick: bool = field(default=False, metadata={"help": "Tiny models: tries the bench, measures nothing."})
    device: str = field(default="cuda", metadata={"help": "Device of PyTorch; cpu goes with --quick."})
    minutes: float | None = field(default=None, metadata={"help": "Start no item after so many minutes."})
    only: list[str] | None = field(default=None, metadata={"help": "Items whose names begin so, for example cpt/7b."})
    date: str | None = field(default=None, metadata={"help": "Noted in the results as it is given."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, GpuArguments)
    sizes = QUICK if arguments.quick else FULL
    run(Bench("bench.training_gpu", sizes, items_of(sizes), GOALS), arguments, argv)


class Bench(NamedTuple):
    """A module's items, and the shares of the ceiling that are aimed at, by the beginnings of the items' names."""

    module: str
    sizes: Sizes
    items: dict[str, Item]
    goals: dict[str, float]


def run(bench: Bench, arguments: GpuArguments, argv: Sequence[str] | None) -> None:
    """Measure the items that are asked for and not in the file yet. Raises DataError for flags that do not fit."""
    started = time.monotonic()
    items, sizes = bench.items, bench.sizes
    machine = Machine.of(arguments.device)
    if machine.device.type == "cpu" and not arguments.quick:
        raise DataError("--device cpu is for trying the bench: add --quick")
    results = Results(Path(arguments.output), setting_of(arguments, machine))
    chosen = [name for name in items if not arguments.only or name.startswith(tuple(arguments.only))]
    if not chosen:
        raise DataError(f"--only {' '.join(arguments.only or [])}: no item begins so; they are {', '.join(items)}")
    left = [name for name in chosen if results.lacks(name)]
    results.commands.append(_command(bench.module, argv, arguments.date))
    for place, name in enumerate(bar := tqdm(left, unit="item")):
        if arguments.minutes is not None and time.monotonic() - started > 60 * arguments.minutes:
            tqdm.write(f"{len(left) - place} items are left: the same command goes on with them", file=sys.stderr)
            break
        bar.set_postfix_str(name)
        results.items[name] = attempted(items[name], sizes, machine)
        results.save(shares(results.items))
    console_of(150).print(table(results, machine, bench.goals))
    failed = [name for name in chosen if name in results.items and results.items[name].outcome == "failed"]
    if failed:
        tqdm.write(f"failed, and tried again by the same command: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def items_of(sizes: Sizes) -> dict[str, Item]:
    """Every item by its name, those with a goal first."""
    models = sizes.models
    items: dict[str, Item] = {SQUARE: square}
    items |= {f"ceiling/{name}": partial(own_matrices, model) for name, model in models.items()}
    training: dict[str, Training] = {}
    for name in ("7b", "1b"):
        for stage in ("cpt", "rank-sft"):
            for length in models[name].row_lengths:
                of = partial(Training, stage, models[name], length)
                training[f"{stage}/{name}/lora/rows-{length}"] = of(lora_rank=sizes.lora_rank)
                if name == "7b":
                    training[f"{stage}/{name}/lora-bf16/rows-{length}"] = of(sizes.lora_rank, frozen_bf16=True)
                training[f"{stage}/{name}/full/rows-{length}"] = of()
    for length in models["bert6"].row_lengths:
        of = partial(Training, "distill", models["bert6"], length)
        training[f"distill/bert6/rows-{length}"] = of()
        training[f"distill/bert6/rows-{length}/workers-{sizes.workers}"] = of(workers=sizes.workers)
    for length in models["7b"].row_lengths:
        items[f"score/7b/bf16/rows-{length}"] = partial(score, models["7b"], length)
    items |= {name: partial(train, item) for name, item in training.items()}
    for name, model in models.items():
        for length in model.row_lengths:
            for kernel in KERNELS:
                items[f"attention/{name}/rows-{length}/{kernel}"] = partial(attention, kernel, model, length)
    return items


def attempted(item: Item, sizes: Sizes, machine: Machine) -> Result:
    """The item's result, or why it has none; the others run all the same."""
    machine.forget()
    held = machine.held_gib()
    try:
        with naming_flags("fewer step_tokens in the bench's sizes.py"):
            return item(sizes, machine)
    except OutOfMemoryError as error:
        return Result("out of memory", f"{error} ({held:.1f} GiB were held before it began)")
    except DoesNotFitError as error:
        return Result("skipped", str(error))
    except AbsentError as error:
        return Result("absent", str(error))
    except Exception as error:  # a rented GPU's other items are worth more than an early end; main names it at the end
        tqdm.write(traceback.format_exc(), file=sys.stderr)
        return Result("failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def shares(items: dict[str, Result]) -> dict[str, float]:
    """Of the rate of large square matrices, the model's FLOPs of every item; none before that rate is measured."""
    ceiling = items[SQUARE].tflops if SQUARE in items else None
    if ceiling is None:
        return {}
    return {name: each.tflops.median / ceiling.median for name, each in items.items() if each.tflops is not None}


def setting_of(arguments: GpuArguments, machine: Machine) -> dict[str, str]:
    return {
        "device": machine.name,
        "sizes": "quick" if arguments.quick else "full",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _command(module: str, argv: Sequence[str] | None, date: str | None) -> str:
    flags = shlex.join(sys.argv[1:] if argv is None else argv)
    return f"python -m {module} {flags}".rstrip() + (f"  # {date}" if date else "")


def table(results: Results, machine: Machine, goals: dict[str, float]) -> Table:
    found = Table(title=f"{machine.name}, {results.setting['sizes']} sizes; median (lowest to highest) of the rounds")
    for heading in ("item", "tokens/s", "pairs/s", "TFLOP/s", "share", "goal", "ms", "peak GiB"):
        found.add_column(heading, justify="left" if heading == "item" else "right")
    of_ceiling = shares(results.items)
    for name, each in results.items.items():
        if each.outcome != "measured":
            found.add_row(name, f"{each.outcome}")
            continue
        goal = next((goal for start, goal in goals.items() if f"{name}/".startswith(f"{start}/")), None)
        found.add_row(
            name,
            _cell(each.tokens_per_second, ",.0f"),
            f"{pairs:,.0f}" if (pairs := each.details.get("pairs_per_second")) else "",
            _cell(each.tflops, ".3g"),
            f"{of_ceiling[name]:.0%}" if name in of_ceiling else "",
            "" if goal is None else f"{goal:.0%}",
            _cell(each.milliseconds, ".3g"),
            "" if each.peak_gib is None else f"{each.peak_gib:.1f}",
        )
    return found


def _cell(spread: Spread | None, style: str) -> str:
    if spread is None:
        return ""
    return f"{spread.median:{style}} ({spread.low:{style}} to {spread.high:{style}})"


if __name__ == "__main__":
    sys.exit(main())
