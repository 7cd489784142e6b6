"""The stages on one GPU: the trainer's own Trainers, adapters, losses and packed forward, on drawn weights."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from bench.gpu.records import GIB, Floats, Machine, Result, Timing
from bench.gpu.sizes import DOCUMENTS, Model, Sizes
from model_repository.tokenizer.pair_encoding import FlatPairs, PairEncoder
from trainer.checkpoints.frozen import round_frozen
from trainer.checkpoints.load import PackedScorer
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup
from trainer.distill import DistillArguments
from trainer.distill import objective as distilling
from trainer.measures.costs import Shape, Work, flops_per_token, memory_bytes
from trainer.pretrain import PretrainArguments, clicked
from trainer.rank_sft import JudgedTargets, RankArguments
from trainer.rank_sft import objective as ranking
from trainer.scoring.checkpoint import lower_precision, parts
from trainer.scoring.memory import OutOfMemoryError, naming_flags
from trainer.training.batches import TrainingGroup
from trainer.training.run import StageArguments
from trainer.training.streams import GroupList
from trainer.training.trainers import LanguageTrainer, RankingTrainer


@dataclass(frozen=True)
class Training:
    """One training item."""

    stage: str  # cpt, rank-sft, distill, or score for a teacher that is not trained
    model: Model
    row_length: int
    lora_rank: int = 0
    frozen: str = "bf16"  # of matrices that LoRA freezes; or fp32, which the trainer has as an alternative
    workers: int = 0

    @property
    def causal(self) -> bool:
        return self.stage == "cpt"


def train(item: Training, sizes: Sizes, machine: Machine) -> Result:
    """The largest step that fits, without activation checkpointing if any does.

    Raises OutOfMemoryError if none does.
    """
    for checkpointing, tokens in itertools.product((False, True), item.model.step_tokens):
        try:
            with naming_flags("fewer step_tokens in bench/gpu/sizes.py"):
                return _trained(item, tokens, checkpointing, sizes, machine)
        except OutOfMemoryError as error:
            reason = f"{error}, tried last with {tokens:,} token slots and activation checkpointing"
        machine.forget()  # once the error has let go of its tensors
    raise OutOfMemoryError(reason)


def _trained(item: Training, tokens: int, checkpointing: bool, sizes: Sizes, machine: Machine) -> Result:
    queries = max(1, tokens // (item.model.pair_tokens * DOCUMENTS))
    groups = taught(item, item.model.groups(queries * sizes.steps.runs))
    encoder, slots = item.model.encoder(item.row_length), list[int]()
    # Newer transformers warn of this name, older ones know no other.
    more: dict[str, Any] = {"gradient_checkpointing": True} if checkpointing else {}
    with tempfile.TemporaryDirectory() as directory:
        arguments = StageArguments(
            output_dir=directory, use_cpu=not machine.on_gpu, bf16=True, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, max_steps=sizes.steps.runs, per_device_train_batch_size=queries,
            dataloader_num_workers=item.workers, **more,
        )  # fmt: skip
        model, clock = built(item, machine), StepClock(machine, sizes.steps)
        model.register_forward_pre_hook(
            lambda _, __, inputs: slots.append(inputs["segment_ids"].numel()), with_kwargs=True
        )
        trainer = _trainer(item, model, encoder, arguments, GroupList(groups, None, seed=0))
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rows = round(sum(slots) / len(slots) / item.row_length)
    work = Work(
        True, rows, item.row_length, 1, True, checkpointing=checkpointing, lora_rank=item.lora_rank, frozen=item.frozen
    )
    shape = item.model.shape(item.causal)
    return figures(
        shape, work, clock.seconds(), slots, encode_groups(encoder, groups), sizes.steps, machine,
        planned_gib=sum(memory_bytes(shape, work).values()) / GIB,
        activation_checkpointing="yes" if checkpointing else "no",
    )  # fmt: skip


def built(item: Training, machine: Machine) -> Any:
    """The model on the device, with its adapters, as ``trainer.training.adapted`` has it."""
    with machine.device:
        model = item.model.drawn(item.causal)
    add_adapters(model, LoraArguments(lora_rank=item.lora_rank), "drawn weights")
    if item.lora_rank and item.frozen == "bf16":
        round_frozen(model)
    return model


def taught(item: Training, groups: Sequence[QueryGroup]) -> list[TrainingGroup]:
    """The groups as the stage trains on them, with drawn teacher scores for distillation."""
    if item.stage != "distill":
        take = partial(clicked, arguments=PretrainArguments(model="")) if item.causal else JudgedTargets()
        return [group for group in map(take, groups) if group is not None]
    scores = torch.randn(len(groups), DOCUMENTS, generator=torch.Generator().manual_seed(0)).tolist()
    return [
        TrainingGroup(group.query_id, group.query, group.documents, tuple(row))
        for group, row in zip(groups, scores, strict=True)
    ]


def _trainer(item: Training, model: Any, encoder: PairEncoder, arguments: StageArguments, groups: GroupList) -> Any:
    if item.causal:
        return LanguageTrainer(model, encoder, args=arguments, train_dataset=groups)
    distil = item.stage == "distill"
    objective = distilling(DistillArguments(model="", scores=[])) if distil else ranking(RankArguments(model=""))
    return RankingTrainer(model, encoder, objective, arguments, train_dataset=groups)


def score(model: Model, row_length: int, sizes: Sizes, machine: Machine) -> Result:
    """Relabelling by a teacher with bf16 layers: encoding, packing, the forward pass, scores on the processor."""
    teacher = built(Training("score", model, row_length), machine).eval()
    lower_precision(teacher, torch.bfloat16)
    scorer, slots, encoder = PackedScorer(teacher), list[int](), model.encoder(row_length)
    pairs_per_batch = sizes.scoring_rows * encoder.config.slots_per_row // 2
    groups = model.groups(sizes.steps.runs * -(-pairs_per_batch // DOCUMENTS))
    batches = parts(groups, pairs_per_batch)
    machine.forget()

    def batch() -> None:
        packed = encoder.pack(encode_groups(encoder, next(batches)))
        slots.append(packed.segment_ids.size)
        scorer.score(packed)

    seconds = machine.seconds(batch, sizes.steps)
    work = Work(False, sizes.scoring_rows, row_length)
    return figures(model.shape(), work, seconds, slots, encode_groups(encoder, groups), sizes.steps, machine)


class StepClock(TrainerCallback):
    """Seconds of a step in each round, data loading and optimiser included."""

    def __init__(self, machine: Machine, timing: Timing) -> None:
        self._machine, self._timing = machine, timing
        self._marks: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._machine.forget()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step - self._timing.warmup
        if done >= 0 and done % self._timing.repeats == 0:
            self._marks.append(self._machine.now())

    def seconds(self) -> Floats:
        return np.diff(self._marks) / self._timing.repeats


def figures(
    shape: Shape, work: Work, seconds: Floats, slots: Sequence[int], pairs: FlatPairs, timing: Timing,
    machine: Machine, **details: float | str,
) -> Result:  # fmt: skip
    """The figures of steps with ``slots``, which read ``pairs`` and took ``seconds``, one number for each round.

    FLOPs are those of ``flops_per_token``: attention over whole rows, as SDPA computes it. The vocabulary's matrix
    counts for tokens that bear loss, since its logits are made for them only. The part that checkpointing computes
    twice is in ``computed_tflops`` only.
    """
    of_rounds = np.reshape(slots[timing.warmup : timing.runs], (timing.rounds, timing.repeats)).mean(axis=1)
    every, tokens = sum(slots), len(pairs.token_ids)
    bearing = (tokens - int(pairs.document_starts.sum())) / every  # share of a causal LM's slots with a loss
    counted = replace(shape, head=round(shape.head * bearing)) if shape.vocabulary else shape
    speed = float(np.median(of_rounds / seconds))
    return Result.timed(
        machine,
        seconds,
        of_rounds,
        of_rounds * flops_per_token(counted, replace(work, checkpointing=False)),
        computed_tflops=speed * flops_per_token(counted, work) / 1e12,
        rows=every / len(slots) / work.row_length,
        row_fill=tokens / every,
        pair_tokens=tokens / len(pairs),
        pairs_per_second=speed * len(pairs) / every,
        **details,
    )
