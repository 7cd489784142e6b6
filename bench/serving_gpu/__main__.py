"""How fast the torch engine scores on one GPU, what share of its matrix speed that is, and where the time goes.

    python -m bench.serving_gpu --output bench/results/serving-gpu.json --minutes 9

Every item is written as soon as it is there; the same command again goes on with those that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from bench.serving_gpu.engine import HOW, PATHS, attention, engine, kernels, path
from bench.serving_gpu.sizes import FULL, QUICK
from bench.training_gpu.__main__ import Bench, GpuArguments, Item, run
from bench.training_gpu.attention import KERNELS
from bench.training_gpu.ceiling import SQUARE, own_matrices, square
from bench.training_gpu.sizes import Sizes
from trainer.command import command, parse

BEST = "graphs"
GOALS = {f"engine/{name}/{BEST}": 0.5 for name in FULL.models} | {f"path/{name}/known": 0.4 for name in FULL.models}


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, GpuArguments)
    sizes = QUICK if arguments.quick else FULL
    run(Bench("bench.serving_gpu", sizes, items_of(sizes), GOALS), arguments, argv)


def items_of(sizes: Sizes) -> dict[str, Item]:
    """Every item by its name: the ceiling, the engine, the way from text to scores, and kernels of attention."""
    items: dict[str, Item] = {SQUARE: square}
    for name, model in sizes.models.items():
        items[f"ceiling/{name}"] = partial(own_matrices, model)
        items |= {f"engine/{name}/{how}": partial(engine, how, model) for how in HOW}
        items |= {f"path/{name}/{which}": partial(path, which, model) for which in PATHS}
        items[f"kernels/{name}"] = partial(kernels, model)
        items |= {f"attention/{name}/{kernel}": partial(attention, kernel, model) for kernel in KERNELS}
    return items


if __name__ == "__main__":
    sys.exit(main())
