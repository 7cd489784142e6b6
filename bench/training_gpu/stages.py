"""The stages on one GPU: the trainer's own Trainers, adapters, losses and packed forward, on drawn weights."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    set_seed,
)

from bench.training_gpu.collection import DOCUMENTS, encoder_of, groups_of
from bench.training_gpu.records import GIB, USABLE, DoesNotFitError, Machine, Result
from bench.training_gpu.sizes import Model, Sizes
from bench.training_gpu.steps import Seen, StepClock, figures
from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import PackedScorer
from trainer.checkpoints.lora import LoraArguments, add_adapters
from trainer.data.pairs import encode_groups
from trainer.data.records import QueryGroup
from trainer.distill import DistillArguments
from trainer.distill import objective as distilling
from trainer.measures.costs import Shape, Work, memory_bytes
from trainer.pretrain import clicked
from trainer.rank_sft import Judged, RankArguments
from trainer.rank_sft import objective as ranking
from trainer.scoring.checkpoint import lower_precision, parts
from trainer.training.batches import TrainingGroup
from trainer.training.run import StageArguments
from trainer.training.streams import GroupList
from trainer.training.trainers import LanguageTrainer, RankingTrainer


@dataclass(frozen=True)
class Training:
    """One training item. ``frozen_bf16`` keeps the weights that LoRA freezes in bf16, which the trainer does not."""

    stage: str  # cpt, rank-sft or distill
    model: Model
    row_length: int
    lora_rank: int = 0
    frozen_bf16: bool = False
    workers: int = 0

    @property
    def causal(self) -> bool:
        return self.stage == "cpt"


@dataclass(frozen=True)
class Step:
    """What a training step takes: token slots, about, and how it runs."""

    tokens: int
    work: Work
    planned_gib: float


def choose_step(item: Training, shape: Shape, memory: int | None) -> Step:
    """The first of the model's steps that fits by ``trainer.measures.costs``,
    without activation checkpointing if any does.

    Raises DoesNotFitError where none does.
    """
    for checkpointing, tokens in itertools.product((False, True), item.model.step_tokens):
        rows = math.ceil(tokens / item.row_length) + 1  # the packer leaves some slots empty
        work = Work(True, rows, item.row_length, 1, True, checkpointing=checkpointing, lora_rank=item.lora_rank)
        step = Step(tokens, work, planned_bytes(item, shape, work) / GIB)
        if memory is None or step.planned_gib <= USABLE * memory / GIB:
            return step
    assert memory is not None
    raise DoesNotFitError(
        f"needs {step.planned_gib:.0f} GiB by trainer.costs even with activation checkpointing; "
        f"the GPU has {memory / GIB:.0f}, of which {USABLE:.0%} are planned with"
    )


def planned_bytes(item: Training, shape: Shape, work: Work) -> float:
    memory = memory_bytes(shape, work)
    if item.frozen_bf16:  # half the size, and autocast has nothing to copy but the adapters
        memory["weights"] /= 2
        memory["bf16 copies"] = 2 * work.lora_rank * shape.adapter
    return sum(memory.values())


def train(item: Training, sizes: Sizes, machine: Machine) -> Result:
    """Raises DoesNotFitError for an item that the GPU's memory does not take, by ``trainer.measures.costs``."""
    shape = item.model.shape(item.causal)
    step = choose_step(item, shape, machine.memory)
    encoder = encoder_of(item.model, item.row_length)
    queries = max(1, step.tokens // (item.model.pair_tokens * DOCUMENTS))
    groups = GroupList(taught(item, groups_of(item.model, encoder, queries * sizes.steps.runs)), None, seed=0)
    # Newer transformers warn of this name, older ones know no other.
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True} if step.work.checkpointing else {}
    with tempfile.TemporaryDirectory() as directory:
        arguments = StageArguments(
            output_dir=directory, use_cpu=machine.device.type == "cpu", bf16=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, max_steps=sizes.steps.runs,
            per_device_train_batch_size=queries, dataloader_num_workers=item.workers,
            **checkpointing,
        )  # fmt: skip
        model, clock, seen = built(item, machine), StepClock(machine, sizes.steps), Seen()
        model.register_forward_pre_hook(seen, with_kwargs=True)
        trainer = trainer_of(item, model, encoder, arguments, groups)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    result = figures(shape, step.work, clock.seconds(), seen, sizes.steps, machine)
    how = {"planned_gib": step.planned_gib, "activation_checkpointing": "yes" if step.work.checkpointing else "no"}
    return replace(result, details={**result.details, **how})


def built(item: Training, machine: Machine) -> Any:
    """The model on the device, with its adapters; weights as the stages have them, in float32."""
    settings = dict(item.model.config)
    control: dict[str, Any] = {"pad_token_id": 0}
    config = AutoConfig.for_model(settings.pop("model_type"), num_labels=1, **settings, **control)
    kind: Any = AutoModelForCausalLM if item.causal else AutoModelForSequenceClassification
    set_seed(0)
    with machine.device:
        model = kind.from_config(config, dtype=torch.bfloat16 if item.frozen_bf16 else torch.float32)
    add_adapters(model, LoraArguments(lora_rank=item.lora_rank), "drawn weights")
    if item.frozen_bf16:
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return model


def taught(item: Training, groups: Sequence[QueryGroup]) -> list[TrainingGroup]:
    """What the stage trains on of the collection."""
    if item.stage == "distill":
        draw = torch.Generator().manual_seed(0)
        scores = torch.randn(len(groups), DOCUMENTS, generator=draw).tolist()
        return [
            TrainingGroup(group.query_id, group.query, group.documents, tuple(row))
            for group, row in zip(groups, scores, strict=True)
        ]
    take = clicked if item.causal else Judged()
    return [group for group in map(take, groups) if group is not None]


def trainer_of(
    item: Training, model: Any, encoder: PairEncoder, arguments: StageArguments, groups: GroupList
) -> Trainer:
    if item.causal:
        return LanguageTrainer(model, encoder, args=arguments, train_dataset=groups)
    if item.stage == "distill":
        objective = distilling(DistillArguments(model="", scores=[]))
    else:
        objective = ranking(RankArguments(model=""))
    return RankingTrainer(model, encoder, objective, arguments, train_dataset=groups)


def score(model: Model, row_length: int, sizes: Sizes, machine: Machine) -> Result:
    """Relabelling by a teacher with bf16 layers: encoding, packing, the forward pass, scores on the CPU."""
    shape, encoder = model.shape(causal=False), encoder_of(model, row_length)
    teacher = built(Training("score", model, row_length), machine).eval()
    lower_precision(teacher, torch.bfloat16)
    scorer, seen = PackedScorer(teacher), Seen()
    scorer.register_forward_pre_hook(lambda _, rows: seen(None, None, _named(rows)))
    pairs_per_batch = sizes.scoring_rows * encoder.config.slots_per_row // 2  # as GroupScorer has it
    groups = groups_of(model, encoder, sizes.steps.runs * -(-pairs_per_batch // DOCUMENTS))
    batches = parts(groups, pairs_per_batch)
    machine.forget()

    def batch() -> None:
        scorer.score(encoder.pack(encode_groups(encoder, next(batches))))

    seconds = machine.seconds(batch, sizes.steps)
    return figures(shape, Work(False, sizes.scoring_rows, row_length), seconds, seen, sizes.steps, machine)


def _named(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    return {"position_ids": rows[2], "segment_ids": rows[3]}
