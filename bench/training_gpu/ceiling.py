"""The ceiling: how fast this GPU multiplies bf16 matrices, large square ones and those of the models themselves."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoConfig, AutoModel

from bench.spread import Spread
from bench.training_gpu.records import Machine, Result
from bench.training_gpu.sizes import Model, Sizes
from trainer.checkpoints.layers import find_layers

SQUARE = "ceiling/square"


def square(sizes: Sizes, machine: Machine) -> Result:
    """TFLOP/s of a product of two square matrices: what every share is of."""
    left, right = (_matrix(sizes.square, sizes.square, machine) for _ in range(2))
    seconds = machine.seconds(lambda: left @ right, sizes.kernels)
    tflops = Spread.of([2 * sizes.square**3 / each / 1e12 for each in seconds])
    return Result("measured", tflops=tflops, peak_gib=machine.peak_gib(), details={"size": sizes.square})


def own_matrices(model: Model, sizes: Sizes, machine: Machine) -> Result:
    """The same of the matrices of a model's layers, each as often as it has them, on a step's tokens."""
    tokens, flops = model.step_tokens[0], 0.0
    seconds = np.zeros(sizes.kernels.rounds)
    rates: dict[str, float] = {}
    for (wide, narrow), count in _matrices(model).items():
        states_TH, weight = _matrix(tokens, wide, machine), _matrix(narrow, wide, machine)
        rounds = np.array(machine.seconds(partial(F.linear, states_TH, weight), sizes.kernels))
        rates[f"tflops_{wide}_to_{narrow}"] = 2 * tokens * wide * narrow / float(np.median(rounds)) / 1e12
        flops, seconds = flops + count * 2 * tokens * wide * narrow, seconds + count * rounds
    tflops = Spread.of((flops / seconds / 1e12).tolist())
    return Result("measured", tflops=tflops, peak_gib=machine.peak_gib(), details={"tokens": float(tokens), **rates})


def _matrices(model: Model) -> Counter[tuple[int, int]]:
    """(numbers that go in, numbers that come out) of every matrix of the layers."""
    config = dict(model.config)
    with torch.device("meta"):
        layers = find_layers(AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config)))
    return Counter((linear.in_features, linear.out_features) for linear in layers.linear().values())


def _matrix(rows: int, columns: int, machine: Machine) -> torch.Tensor:
    """Drawn, not zeros: a GPU draws less power for those, and is faster."""
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=machine.device)
