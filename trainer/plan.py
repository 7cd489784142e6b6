"""The cost of training before any GPU is rented: memory of one GPU by part, FLOPs, speed and days.

    python -m trainer.plan --model Qwen/Qwen3-8B --student google-bert/bert-base-uncased --gpus 8 \\
        --gpu_memory_gib 80 --peak_tflops 989 --utilisation 0.4 --pairs 59e6 --sharding fsdp

The figures are right within a factor of 1.5. They assume:

- Weights, gradients and both moments of AdamW are float32: ``Trainer(bf16=True)`` leaves them so, and autocast
  makes bf16 copies of the matrices for a step. Matrices that LoRA freezes are in bf16, unless they are sharded.
- LoRA adapters lie on every matrix of the layers, and count as weights. The rest of the LLM is frozen, except for
  the score head. The student is trained in full.
- ``trainer.score`` has a whole model on each GPU, each with its share of the pool.
- "exchange" is a second copy of the gradients, DDP's buckets. With FSDP it is the weights gathered from other GPUs:
  two layers at a time, and everything outside of the layers. This part of FSDP was not measured.
- The total adds parts that need not peak together: gradients and activations (they do when gradients accumulate),
  logits and the layer that checkpointing computes again. It does not include the CUDA context and fragmentation:
  leave a tenth of the memory free.
- Rows are full, and attention reads whole rows: with a mask, SDPA computes the masked part too.
- The utilisation counts all computed FLOPs, those of activation checkpointing included.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from trainer.command import command, console_of, parse
from trainer.data.records import DataError
from trainer.measures.costs import Work, flops_per_token, memory_bytes, read_shape, trained_parameters
from trainer.storage import appears_whole

STAGES = ("pretrain", "rank_sft", "score", "distill")
GIB = 2**30


@dataclass
class PlanArguments:
    """The models, the machines and the amount of work."""

    model: str = field(metadata={"help": "The LLM: JSON configuration, checkpoint or hub id."})
    gpus: int = field(metadata={"help": "Number of GPUs."})
    gpu_memory_gib: float = field(metadata={"help": "Memory of one GPU, GiB."})
    peak_tflops: float = field(metadata={"help": "Peak of one GPU at --precision with dense matrices, TFLOP/s."})
    utilisation: float = field(metadata={"help": "Share of the peak that is reached, above 0 and at most 1."})
    pairs: float = field(metadata={"help": "Query-document pairs that each stage reads; those of each epoch count."})
    student: str | None = field(default=None, metadata={"help": "The model that distill trains, given like --model."})
    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Some of {', '.join(STAGES)}."})
    fp32_tflops: float | None = field(
        default=None, metadata={"help": "Peak of one GPU in float32, for score, TFLOP/s."}
    )
    pair_tokens: float = field(default=150.0, metadata={"help": "Mean tokens of a pair."})
    row_length: int = field(default=1024, metadata={"help": "Token slots of a packed row."})
    rows_per_device: int = field(default=8, metadata={"help": "Packed rows on a GPU in one forward pass."})
    days: float = field(default=7.0, metadata={"help": "Days that each stage may take."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of the LLM's LoRA adapters; 0 trains full weights."})
    precision: Literal["bf16", "fp32"] = field(
        default="bf16", metadata={"help": "Precision of training; bf16 is autocast."}
    )
    frozen_precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto", metadata={"help": "Precision of the matrices that LoRA freezes, as in training."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "These matrices in 4 bits, as in training."})
    score_precision: Literal["fp32", "bf16"] = field(
        default="fp32", metadata={"help": "Precision of trainer.score, as its --precision."}
    )
    sharding: Literal["none", "fsdp"] = field(default="none", metadata={"help": "fsdp: full shards over all GPUs."})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Keep only the inputs of layers, and compute the rest again."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the figures."})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) in (int, float) and name != "lora_rank" and not 0 < value < math.inf:
                raise DataError(f"--{name} {value}: must be above 0")
        if self.utilisation > 1:
            raise DataError(f"--utilisation {self.utilisation}: a share of the peak is at most 1")
        if self.lora_rank < 0:
            raise DataError(f"--lora_rank {self.lora_rank}: must be at least 0")
        if self.pair_tokens > self.row_length:
            raise DataError(f"--pair_tokens {self.pair_tokens:g}: longer than a row of {self.row_length}")
        if unknown := set(self.stages) - set(STAGES):
            raise DataError(f"--stages {min(unknown)}: the stages are {', '.join(STAGES)}")
        if set(self.stages) <= {"distill"} and self.student is None:
            raise DataError("--stages distill: give its model with --student")
        self._check_frozen()

    def _check_frozen(self) -> None:
        """Raises DataError for what ``LoraArguments`` and ``Adapted`` refuse in training."""
        flag = "--load_in_4bit true" if self.load_in_4bit else f"--frozen_precision {self.frozen_precision}"
        if (self.load_in_4bit or self.frozen_precision != "auto") and not self.lora_rank:
            raise DataError(f"{flag} is for matrices that LoRA freezes: it needs --lora_rank")
        if self.load_in_4bit and self.frozen_precision == "fp32":
            raise DataError("--load_in_4bit does not go with --frozen_precision fp32")
        if self.load_in_4bit or self.frozen_precision == "bf16":
            if self.precision != "bf16":
                raise DataError(f"{flag} computes in bf16: it needs --precision bf16")
            if self.sharding != "none":
                raise DataError(f"{flag} is for a whole model on each device, and {self.sharding} shards it")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, PlanArguments)
    stages = [stage for stage in arguments.stages if stage != "distill" or arguments.student is not None]
    plans = [plan(stage, arguments) for stage in stages]
    if len(stages) < len(arguments.stages):
        print("distill is left out: give its model with --student", file=sys.stderr)
    slower = arguments.precision == "bf16" and arguments.score_precision == "fp32"
    if "score" in stages and slower and arguments.fp32_tflops is None:
        print("score computes in float32, slower than --peak_tflops: give --fp32_tflops too", file=sys.stderr)
    console_of(140).print(_table(plans, arguments))
    if arguments.output:
        with appears_whole(Path(arguments.output)) as partial:
            partial.write_text(json.dumps(plans, indent=2) + "\n", encoding="utf-8")


def plan(stage: str, arguments: PlanArguments) -> dict[str, Any]:
    """The figures of one of ``STAGES``, as ``--output`` has them: memory of one GPU, speed of all GPUs together.

    Raises CheckpointError for a model that the stage cannot have.
    """
    scores, distils = stage == "score", stage == "distill"
    shape = read_shape(str(arguments.student if distils else arguments.model), causal=stage == "pretrain")
    work = Work(
        training=not scores,
        rows=arguments.rows_per_device,
        row_length=arguments.row_length,
        gpus=arguments.gpus,
        bf16=(arguments.score_precision if scores else arguments.precision) == "bf16",
        fsdp=not scores and arguments.sharding == "fsdp",
        checkpointing=not scores and arguments.activation_checkpointing,
        lora_rank=0 if scores or distils else arguments.lora_rank,
        frozen="4bit" if arguments.load_in_4bit else _frozen_precision(arguments),
    )
    memory = {part: size / GIB for part, size in memory_bytes(shape, work).items()}
    flops = flops_per_token(shape, work)
    slow_peak = None if work.training or work.bf16 else arguments.fp32_tflops
    tokens_per_second = arguments.gpus * (slow_peak or arguments.peak_tflops) * 1e12 * arguments.utilisation / flops
    pairs_per_second = tokens_per_second / arguments.pair_tokens
    return {
        "stage": stage,
        "model": shape.family,
        "precision": "bf16" if work.bf16 else "fp32",
        "parameters": shape.parameters,
        "trained_parameters": trained_parameters(shape, work),
        "memory_gib": memory,
        "total_gib": sum(memory.values()),
        "fits": sum(memory.values()) <= arguments.gpu_memory_gib,
        "flops_per_token": flops,
        "tokens_per_second": tokens_per_second,
        "pairs_per_second": pairs_per_second,
        "days": arguments.pairs / pairs_per_second / 86400,
        "pairs_per_second_needed": arguments.pairs / arguments.days / 86400,
    }


def _frozen_precision(arguments: PlanArguments) -> str:
    """As ``trainer.training.adapted`` chooses it."""
    if arguments.frozen_precision != "auto":
        return arguments.frozen_precision
    return arguments.precision if arguments.sharding == "none" else "fp32"


def _table(plans: Sequence[dict[str, Any]], arguments: PlanArguments) -> Table:
    """A column for each stage, with the file's names; cells are empty where there is none of something."""
    work = f"{arguments.pairs:,.0f} pairs in {arguments.days:g} days"
    table = Table("", title=f"{arguments.gpus} GPUs of {arguments.gpu_memory_gib:g} GiB, memory of one; {work}")
    columns = []
    for figures in plans:
        table.add_column(figures["stage"], justify="right")
        parts = [value if name == "memory_gib" else {name: value} for name, value in figures.items() if name != "stage"]
        columns.append({name: _shown(value) for part in parts for name, value in part.items()})
    for name in columns[0]:
        ends = name in ("trained_parameters", "fits")
        table.add_row(
            name.removesuffix("_gib").replace("_", " "), *(column[name] for column in columns), end_section=ends
        )
    return table


def _shown(value: str | bool | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, str) or not value:
        return str(value or "")
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
