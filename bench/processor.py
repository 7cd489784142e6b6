"""Where the time of a training step goes on a processor: bf16 beside float32, and attention by its kernels.

    OMP_NUM_THREADS=1 python -m bench.processor --rounds 5

BERT of the shape of MiniLM-L6, with drawn weights. All cases take turns in every round. Times are of the processor in
this process, so that other work on the machine counts little; ratios are of two cases in one round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.sizes import MINILM_6, QUICK, Model
from bench.gpu.training import Training, taught
from bench.report import Spread, described, in_order, machine, ratios, show, table_of, times
from trainer.checkpoints.layers import find_layers
from trainer.command import command, parse
from trainer.data.records import DataError
from trainer.packed.attention import Kernel, use_kernel
from trainer.packed.forward import packed_scores
from trainer.training.batches import RankingBatch, RankingCollator
from trainer.training.losses import pointwise_mse

Case = Callable[[], object]
MINILM = Model(MINILM_6, (256,), 92, 230, (4096,))
NAMES = {torch.float32: "float32", torch.bfloat16: "bf16"}
# The cases that another one is the measure of, with that one.
AGAINST = {
    "products, bf16": "products, float32",
    "step, bf16": "step, float32",
    "step, float32, SDPA's dropout": "step, float32",
    "step, bf16, SDPA's dropout": "step, bf16",
    "step, float32, no attention dropout": "step, float32",
    "step, bf16, no attention dropout": "step, bf16",
    "scoring, flex": "scoring, dense",
}


@dataclass
class ProcessorArguments:
    """The amount of work."""

    queries: int = field(default=4, metadata={"help": "Queries of a step, with 8 documents each."})
    rounds: int = field(default=5, metadata={"help": "Rounds, after one that is not counted."})
    flex: bool = field(
        default=False, metadata={"help": "Scoring alone, by FlexAttention too, which takes a compiler and a minute."}
    )
    quick: bool = field(default=False, metadata={"help": "A tiny model: tries the bench, measures nothing."})

    def __post_init__(self) -> None:
        if min(self.queries, self.rounds) < 1:
            raise DataError("--queries and --rounds must be at least 1")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, ProcessorArguments)
    model = QUICK.trained["bert6"] if arguments.quick else MINILM
    encoder = model.encoder(model.row_lengths[0])
    item = Training("distill", model, model.row_lengths[0])
    batch = RankingCollator(encoder)(taught(item, model.groups(arguments.queries)))
    scoring = _scoring(model, batch, arguments.flex)
    cases = scoring if arguments.flex else {**_products(model, batch), **_steps(model, batch), **scoring}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(arguments.rounds + 1):
        for name in in_order(list(cases), number):
            started = time.process_time()
            cases[name]()
            if number:
                seconds[name].append(time.process_time() - started)
    rows, length = batch["packed"]["input_ids"].shape
    title = f"{described(machine(torch.get_num_threads()))}; {rows} rows of {length} tokens, {arguments.rounds} rounds"
    table = table_of(title, ("case", "ms", "times as fast", "as"), left=["case", "as"])
    for name, of_case in seconds.items():
        other = AGAINST.get(name)
        ratio = times(ratios(seconds[other], of_case)) if other else ""
        table.add_row(name, str(Spread.of([1000 * each for each in of_case])), ratio, other or "")
    show(table)


def _products(model: Model, batch: RankingBatch) -> dict[str, Case]:
    """The products of a step with the matrices of its layers, each forward and both ways back."""
    tokens = batch["packed"]["input_ids"].numel()
    with torch.device("meta"):
        matrices = [(each.in_features, each.out_features) for each in find_layers(model.drawn()).linear().values()]

    def multiplied(dtype: torch.dtype) -> Case:
        drawn = {
            shape: [torch.randn(*size, dtype=dtype) for size in ((tokens, shape[0]), shape[::-1], (tokens, shape[1]))]
            for shape in set(matrices)
        }
        return lambda: [_three_products(*drawn[shape]) for shape in matrices]

    return {f"products, {name}": multiplied(dtype) for dtype, name in NAMES.items()}


def _three_products(states_TI: Tensor, weight_OI: Tensor, gradient_TO: Tensor) -> list[Tensor]:
    return [states_TI @ weight_OI.T, gradient_TO @ weight_OI, gradient_TO.T @ states_TI]


def _steps(model: Model, batch: RankingBatch) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind in ("", ", SDPA's dropout", ", no attention dropout"):
        config = model.config | ({"attention_probs_dropout_prob": 0.0} if kind == ", no attention dropout" else {})
        drawn = replace(model, config=config).drawn().train()
        if not kind:
            use_kernel(drawn, "dense", training=True)
        optimiser = torch.optim.AdamW(drawn.parameters(), lr=1e-5, fused=True)
        for dtype, name in NAMES.items():
            cases[f"step, {name}{kind}"] = partial(_step, drawn, optimiser, batch, dtype)
    return cases


def _step(model: Any, optimiser: torch.optim.Optimizer, batch: RankingBatch, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        scores = packed_scores(model, **batch["packed"]).flatten()[batch["slots"]]
    torch.autograd.backward(pointwise_mse(scores, batch["targets"], batch["groups"]).losses.mean())
    optimiser.step()
    optimiser.zero_grad()


def _scoring(model: Model, batch: RankingBatch, flex: bool) -> dict[str, Case]:
    kernels: tuple[Kernel, ...] = ("dense", "flex") if flex else ("dense",)
    cases: dict[str, Case] = {}
    for kernel in kernels:
        drawn = model.drawn().eval()
        use_kernel(drawn, kernel, training=False)
        cases[f"scoring, {kernel}"] = partial(_scored, drawn, batch)
    return cases


@torch.inference_mode()
def _scored(model: Any, batch: RankingBatch) -> Tensor:
    return packed_scores(model, **batch["packed"])


if __name__ == "__main__":
    sys.exit(main())
