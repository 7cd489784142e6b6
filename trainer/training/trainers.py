"""The Trainers of the stages: packed batches to losses, on any number of processes.

A loss is a mean over the queries (or tokens) of the whole step. Two processes with half of the queries each therefore
train as one does; they exchange sums, not pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import reduce
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import Model
from trainer.checkpoints.lora import has_adapters
from trainer.data.records import DataError
from trainer.training.batches import Collate, LanguageCollator, PassOver, RankingCollator
from trainer.training.held_out import LOSS, HeldOut
from trainer.training.in_parts import rows_within, use_packed_forward
from trainer.training.losses import QueryLosses, mean_over_queries
from trainer.training.processes import decided_by_first, highest
from trainer.training.resume import NonFiniteLossError
from trainer.training.run import StageArguments
from trainer.training.sharded import callable_model, scorer_of

MeanOver = Literal["queries", "pairs"]
MEAN_OVER_HELP = (
    "Whether all queries of a step weigh the same, or each as many as it has documents or pairs that are compared."
)


class Term(NamedTuple):
    """A part of a ranking loss."""

    weight: float
    loss: Callable[[Tensor, Tensor, Tensor], QueryLosses]  # student[N], targets[N], groups[N]
    on_labels: bool = False  # its targets are the judged pairs' labels, beside a teacher's scores


def described(objective: Sequence[Term]) -> str:
    """The terms as a formula of the names in trainer/training/losses.py."""
    parts = []
    for term in objective:
        loss: Any = term.loss
        given = [f"{name}={value}" for name, value in getattr(loss, "keywords", {}).items()]
        name = getattr(loss, "func", loss).__name__ + (f"({', '.join(given)})" if given else "")
        parts.append(f"{term.weight:g} {name}" + (" of the labels" if term.on_labels else ""))
    return " + ".join(parts)


def mean_of_all_processes(total: Tensor, weight: Tensor) -> Tensor:
    """This process's share of the ratio of the sums of ``total`` and ``weight`` (scalars) over all processes, times
    their number: DDP takes the mean of the processes' gradients."""
    everything: Tensor = reduce(weight, "mean")
    return total / everything.clamp(min=torch.finfo(weight.dtype).tiny)


class StageTrainer(Trainer, ABC):
    """Trains a Hugging Face model by its packed forward.

    Its resume checkpoints hold only trainable weights and the optimiser's states: with adapters they leave out the
    LLM's own weights, which the next start reads from ``--model``.
    """

    def __init__(
        self,
        model: Model,
        encoder: PairEncoder,
        collate: Collate,
        args: StageArguments,
        held_out: HeldOut | None = None,
        **settings: Any,
    ) -> None:
        self._rows_per_part = rows_within(args.token_budget, encoder.config.row_length)
        use_packed_forward(model, self._rows_per_part)
        collator: Any = PassOver(collate)
        if held_out is not None:
            settings.update(eval_dataset=held_out.groups, callbacks=held_out.callbacks())
        super().__init__(model=model, args=args, data_collator=collator, **settings)
        self.model_accepts_loss_kwargs = False  # our losses are means: accumulation must divide
        self._encoder, self._collate, self._held_out = encoder, collate, held_out

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The measure on the held-out queries, logged like a loss."""
        if self._held_out is None:
            raise ValueError("this trainer has no held-out queries")
        own_metrics = self._judged_by(self._held_out)
        metrics = decided_by_first(lambda: own_metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @abstractmethod
    def _judged_by(self, held_out: HeldOut) -> dict[str, float]:
        """The measure on the held-out queries, under the name by which the Trainer reads it."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model: Model = self.model
        if not has_adapters(model):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            directory = Path(str(output_dir or self.args.output_dir))
            directory.mkdir(parents=True, exist_ok=True)
            whole = model.state_dict() if state_dict is None else state_dict
            trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
            weights = {name: whole[name].detach().cpu().contiguous() for name in trained}
            save_file(weights, directory / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


class RankingTrainer(StageTrainer):
    """Trains a scorer on the sum of the terms of ``objective``.

    ``by_count`` weighs a query by the documents or pairs that a term compares, else all queries weigh the same.
    """

    def __init__(
        self,
        model: Model,
        encoder: PairEncoder,
        objective: Sequence[Term],
        args: StageArguments,
        by_count: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, encoder, RankingCollator(encoder), args, **settings)
        self._objective, self._by_count = objective, by_count
        self._compared = Compared()
        self.add_callback(self._compared)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        scores_RS = model(**inputs["packed"])
        scores = scores_RS.flatten()[inputs["slots"]]
        each = [
            term.loss(scores, inputs["labels" if term.on_labels else "targets"], inputs["groups"])
            for term in self._objective
        ]
        counts = [losses.counts for term, losses in zip(self._objective, each, strict=True) if not term.on_labels]
        self._compared.add(torch.stack(counts) > 0)
        parts = [
            term.weight * mean_of_all_processes(*mean_over_queries(losses, inputs["weights"], self._by_count))
            for term, losses in zip(self._objective, each, strict=True)
        ]
        return finite(torch.stack(parts).sum(), self.state.global_step, inputs["queries"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._compared.share()}
        super().log(logs, start_time)

    def _judged_by(self, held_out: HeldOut) -> dict[str, float]:
        return held_out.evaluate(scorer_of(self), self._encoder, self._rows_per_part)


class LanguageTrainer(StageTrainer):
    """Trains a causal LM on the document's side of packed pairs."""

    def __init__(self, model: Model, encoder: PairEncoder, args: StageArguments, **settings: Any) -> None:
        super().__init__(model, encoder, LanguageCollator(encoder), args, **settings)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        losses_RL = model(**inputs["packed"], labels=inputs["labels"])
        loss = mean_of_all_processes((losses_RL * inputs["weights"]).sum(), inputs["weights"].sum())
        return finite(loss, self.state.global_step, inputs["queries"])

    def _judged_by(self, held_out: HeldOut) -> dict[str, float]:
        """The loss of training, as one mean over the tokens of all held-out documents; processes share them out."""
        model = callable_model(self)
        was_training, processes = model.training, self.args.world_size
        model.eval()
        size = self.args.per_device_eval_batch_size
        batches = [held_out.groups[first : first + size] for first in range(0, len(held_out.groups), size)]
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for first in range(0, len(batches), processes):
            place = first + self.args.process_index
            # Where weights are sharded, all processes call the model as often: one has a batch that does not count.
            collated: Any = self._collate(batches[min(place, len(batches) - 1)])
            inputs: Any = self._prepare_inputs(collated)
            with torch.no_grad():
                losses_RL = model(**inputs["packed"], labels=inputs["labels"])
            if place < len(batches):
                sums += torch.stack([(losses_RL * inputs["weights"]).sum(), inputs["weights"].sum()]).double()
        model.train(was_training)
        total, weight = reduce(sums, "sum")
        return {f"eval_{LOSS}": finite(total / weight, self.state.global_step, ["all of --held_out"]).item()}


class Compared(TrainerCallback):
    """Counts the queries of this process in which the terms of the objective found documents to compare."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []  # [terms, B] of each step since the last point of the loss curve
        self._ever: Tensor = torch.tensor(False)  # [terms]
        self._from_the_start = False  # of an epoch: a run that resumed did not see what came before

    def add(self, found_TB: Tensor) -> None:
        self._found.append(found_TB)
        self._ever = self._ever.to(found_TB.device) | found_TB.any(dim=1)

    def share(self) -> dict[str, float]:
        """The share of queries since the last call, under its name in the loss curve; nothing without queries."""
        if not self._found:
            return {}
        found_TB, self._found = torch.cat(self._found, dim=1), []
        return {"queries_compared": found_TB.any(dim=0).float().mean().item()}

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._from_the_start = self._from_the_start or not (state.epoch or 0) % 1

    def on_epoch_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Raises DataError in all processes for a term that found nothing in any of them."""
        if self._from_the_start and not all(highest(int(ever), args.device) for ever in self._ever.flatten()):
            raise DataError(
                "a part of the objective found no documents to compare in any query: each has one document, or the "
                "labels or scores of its documents are alike"
            )


def finite(loss: Tensor, steps: int, queries: Sequence[str]) -> Tensor:
    """The loss. Raises NonFiniteLossError, which names the queries of the step, if it is not a number."""
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss is {loss.item()} after {steps} steps, and no weight was changed by it; "
            f"the queries of this step: {', '.join(queries)}"
        )
    return loss


def check_documents_per_query(count: int | None) -> None:
    """Raises DataError for a ``--documents_per_query`` that leaves nothing to compare."""
    if count is not None and count < 2:
        raise DataError(f"--documents_per_query must be at least 2, not {count}: a rank loss compares documents")
