"""The speed of the training stages and of the engines on one GPU, and its share of the GPU's matrix rate.

    python -m bench.gpu --output bench/results/gpu.json --minutes 9

Every item is written when it is done. The same command again resumes with those that are missing.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import peft
import torch
import transformers
from rich.table import Table
from tqdm import tqdm

from bench.gpu import kernels, serving
from bench.gpu.records import AbsentError, Machine, Result, read_record
from bench.gpu.sizes import FULL, QUICK, Sizes
from bench.gpu.training import Training, score, train
from bench.report import table_of, write
from trainer.command import command, console_of, parse
from trainer.data.records import DataError
from trainer.packed.attention import Kernel
from trainer.scoring.memory import OutOfMemoryError, naming_flags

Item = Callable[[Sizes, Machine], Result]
Items = dict[str, dict[str, Any]]  # results by the names of their items, as the file has them
# Shares of the ceiling that are aimed at, by the beginnings of the items' names.
GOALS = {"cpt/7b/lora": 0.5, "rank-sft/7b/lora": 0.5, "score/7b/bf16": 0.65, "distill/bert6": 0.4,
         **{f"engine/{name}/{serving.SERVED}": 0.5 for name in FULL.served},
         **{f"path/{name}/known": 0.4 for name in FULL.served}}  # fmt: skip


@dataclass
class GpuArguments:
    """The items to measure, and the file for the results."""

    output: str = field(default="bench/results/gpu.json", metadata={"help": "JSON file with the results."})
    quick: bool = field(default=False, metadata={"help": "Tiny models: tries the bench, measures nothing."})
    device: str = field(default="cuda", metadata={"help": "Device of PyTorch; cpu goes with --quick."})
    minutes: float | None = field(default=None, metadata={"help": "Start no item after this many minutes."})
    only: list[str] | None = field(default=None, metadata={"help": "Only items whose names begin so, as in cpt/7b."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, GpuArguments)
    started, machine = time.monotonic(), Machine.of(arguments.device)
    if not machine.on_gpu and not arguments.quick:
        raise DataError("--device cpu is for trying the bench: add --quick")
    sizes = QUICK if arguments.quick else FULL
    output, items = Path(arguments.output), items_of(sizes)
    record = read_record(output, _setting(arguments, machine))
    done: Items = record["items"]
    chosen = [name for name in items if not arguments.only or name.startswith(tuple(arguments.only))]
    if not chosen:
        raise DataError(f"--only {' '.join(arguments.only)}: no item begins so; they are {', '.join(items)}")
    missing = [name for name in chosen if name not in done or done[name]["outcome"] == "failed"]
    record["commands"].append(f"python -m bench.gpu {shlex.join(sys.argv[1:] if argv is None else argv)}")
    for place, name in enumerate(bar := tqdm(missing, unit="item")):
        if arguments.minutes is not None and time.monotonic() - started > 60 * arguments.minutes:
            tqdm.write(f"{len(missing) - place} items are missing: the same command resumes with them", sys.stderr)
            break
        bar.set_postfix_str(name)
        done[name] = asdict(attempted(items[name], sizes, machine))
        write(output, {**record, "shares_of_ceiling": shares(done)})
    title = f"{machine.name}, {record['setting']['sizes']} sizes; median (lowest to highest) of the rounds"
    console_of(150).print(table(done, title))
    failed = [name for name in chosen if name in done and done[name]["outcome"] == "failed"]
    if failed:
        tqdm.write(f"failed, and tried again by the same command: {', '.join(failed)}", sys.stderr)
        raise SystemExit(1)


def items_of(sizes: Sizes) -> dict[str, Item]:
    """Every item by its name, those with a goal first."""
    items: dict[str, Item] = {kernels.SQUARE: kernels.square}
    items |= {f"ceiling/{name}": partial(kernels.own_matrices, model) for name, model in sizes.models.items()}
    for name, model in sizes.served.items():
        items |= {f"engine/{name}/{kind}": partial(serving.engine, kind, model) for kind in serving.ENGINES}
        served = partial(serving.engine, serving.SERVED, model)
        items |= {f"path/{name}/{start}": partial(served, start=start) for start in ("known", "text")}
        items[f"kernels/{name}"] = partial(serving.kernels, model)
    rank = sizes.lora_rank
    for name, model in sizes.trained.items():
        for length in model.row_lengths:
            settings: dict[str, dict[str, Any]] = {"": {}, f"/workers-{sizes.workers}": {"workers": sizes.workers}}
            if model.decoder:
                settings = {"/lora": {"lora_rank": rank}, "/full": {}}
                settings |= {"/lora-fp32": {"lora_rank": rank, "frozen": "fp32"}} if name == "7b" else {}
            for stage in ("cpt", "rank-sft") if model.decoder else ("distill",):
                for kind, more in settings.items():
                    item = Training(stage, model, length, **more)
                    items[f"{stage}/{name}{kind}/rows-{length}"] = partial(train, item)
            if name == "7b":
                items[f"score/{name}/bf16/rows-{length}"] = partial(score, model, length)
    for name, model in sizes.models.items():
        for length in model.row_lengths:
            for kernel in get_args(Kernel):
                items[f"attention/{name}/rows-{length}/{kernel}"] = partial(kernels.attention, kernel, model, length)
    return items


def attempted(item: Item, sizes: Sizes, machine: Machine) -> Result:
    """The item's result, or the reason why it has none. The others run all the same."""
    machine.forget()
    try:
        with naming_flags("smaller figures in bench/gpu/sizes.py"):
            return item(sizes, machine)
    except OutOfMemoryError as error:
        return Result("out of memory", str(error))
    except AbsentError as error:
        return Result("absent", str(error))
    except Exception as error:  # a rented GPU's other items are worth more than an early end; main names it at the end
        tqdm.write(traceback.format_exc(), sys.stderr)
        return Result("failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def shares(done: Items) -> dict[str, float]:
    """The FLOPs of every item over the rate of large square matrices; none before that rate is measured."""
    if not (ceiling := done.get(kernels.SQUARE, {}).get("tflops")):
        return {}
    return {name: each["tflops"]["median"] / ceiling["median"] for name, each in done.items() if each["tflops"]}


def _setting(arguments: GpuArguments, machine: Machine) -> dict[str, str]:
    return {
        "device": machine.name,
        "sizes": "quick" if arguments.quick else "full",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def table(done: Items, title: str) -> Table:
    headings = ("item", "tokens/s", "pairs/s", "TFLOP/s", "share", "goal", "ms", "peak GiB")
    made, of_ceiling = table_of(title, headings, left=["item"]), shares(done)
    for name, each in done.items():
        if each["outcome"] != "measured":
            made.add_row(name, each["outcome"])
            continue
        goal = next((goal for start, goal in GOALS.items() if f"{name}/".startswith(f"{start}/")), None)
        made.add_row(
            name, _cell(each["tokens_per_second"], ",.0f"), _cell(each["details"].get("pairs_per_second"), ",.0f"),
            _cell(each["tflops"], ".3g"), _cell(of_ceiling.get(name), ".0%"), _cell(goal, ".0%"),
            _cell(each["milliseconds"], ".3g"), _cell(each["peak_gib"], ".1f"),
        )  # fmt: skip
    return made


def _cell(value: Any, style: str) -> str:
    """A number or a spread, "" for None."""
    if isinstance(value, dict):
        return f"{value['median']:{style}} ({value['low']:{style}} to {value['high']:{style}})"
    return "" if value is None else f"{value:{style}}"


if __name__ == "__main__":
    sys.exit(main())
