"""The Trainers of the stages: packed batches to losses, on any number of processes.

A loss is a mean over the pairs (or tokens) of the whole step. Two processes with half of the queries each therefore
train as one does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from accelerate.utils import gather, pad_across_processes, reduce
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_NAME

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import Model
from trainer.checkpoints.lora import has_adapters
from trainer.data.records import DataError
from trainer.training.batches import Collate, LanguageCollator, PassOver, RankingCollator
from trainer.training.held_out import HeldOut
from trainer.training.in_parts import rows_within, use_packed_forward
from trainer.training.losses import mixed_with_labels, weighted_mean
from trainer.training.processes import decided_by_first, several
from trainer.training.resume import NonFiniteLossError
from trainer.training.run import StageArguments
from trainer.training.sharded import scorer_of

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores[N], targets[N], groups[N] -> scalar


class ScoredPairs(NamedTuple):
    """The pairs of a step, as objectives take them; ``labels`` is empty where no objective wants it."""

    student: Tensor  # [N]
    targets: Tensor  # [N]
    groups: Tensor  # [N]
    labels: Tensor  # [N] or [0]

    def of_all_processes(self) -> ScoredPairs:
        """The pairs of every process, in order; the queries of each process have numbers of their own.

        Each process then has the same loss. The gradient that comes back through the gathering is the sum over all
        processes, which DDP divides by their number again.
        """
        if not several():
            return self
        apart = self._replace(groups=self.groups + dist.get_rank() * 2**32)
        return ScoredPairs(*(_gathered(values) for values in apart))


def _gathered(values: Tensor) -> Tensor:
    """[N] of each process, one after the other; processes may have different N."""
    sizes = gather(torch.tensor([len(values)], device=values.device)).tolist()
    parts = differentiable.all_gather(pad_across_processes(values))  # type: ignore[no-untyped-call]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class StageTrainer(Trainer):
    """Trains a Hugging Face model by its packed forward.

    Its resume checkpoints hold only trainable weights and the optimiser's states: with adapters they leave out the
    LLM's own weights, which the next start reads from ``--model``.
    """

    def __init__(
        self, model: Model, encoder: PairEncoder, collate: Collate, args: StageArguments, **settings: Any
    ) -> None:
        use_packed_forward(model, rows_within(args.token_budget, encoder.config.row_length))
        collator: Any = PassOver(collate)
        super().__init__(model=model, args=args, data_collator=collator, **settings)
        self.model_accepts_loss_kwargs = False  # our losses are means: accumulation must divide

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
    """Trains a scorer on ``objective``.

    ``label_weight`` is the share of the loss that is RankNet on the groups' labels.
    """

    def __init__(
        self,
        model: Model,
        encoder: PairEncoder,
        objective: Objective,
        args: StageArguments,
        label_weight: float = 0.0,
        held_out: HeldOut | None = None,
        **settings: Any,
    ) -> None:
        if held_out is not None:
            settings.update(eval_dataset=held_out.groups, callbacks=held_out.callbacks())
        super().__init__(model, encoder, RankingCollator(encoder), args, **settings)
        self.objective: Objective = objective
        self.label_weight = label_weight
        self._encoder, self._held_out = encoder, held_out

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        scores_RS = model(**inputs["packed"])
        local = ScoredPairs(scores_RS.flatten()[inputs["slots"]], inputs["targets"], inputs["groups"], inputs["labels"])
        pairs = local.of_all_processes()
        loss = self.objective(pairs.student, pairs.targets, pairs.groups)
        if self.label_weight:
            loss = mixed_with_labels(loss, pairs.student, pairs.labels, pairs.groups, self.label_weight)
        return finite(loss, self.state.global_step, inputs["queries"])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The measure on the held-out queries, logged like a loss."""
        if self._held_out is None:
            raise ValueError("this trainer has no held-out queries")
        own_metrics = self._held_out.evaluate(scorer_of(self), self._encoder)
        metrics = decided_by_first(lambda: own_metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class LanguageTrainer(StageTrainer):
    """Trains a causal LM on the document's side of packed pairs."""

    def __init__(self, model: Model, encoder: PairEncoder, args: StageArguments, **settings: Any) -> None:
        super().__init__(model, encoder, LanguageCollator(encoder), args, **settings)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        losses_RL = model(**inputs["packed"], labels=inputs["labels"])
        weight = inputs["weights"].sum()
        # DDP takes the mean of the processes' losses: with this factor it is one over all of their tokens.
        loss = weighted_mean(losses_RL, inputs["weights"]) * (weight / reduce(weight, "mean"))
        return finite(loss, self.state.global_step, inputs["queries"])


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
