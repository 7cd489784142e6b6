"""Plain transformers: flat pairs, tokenised before the loop, padded to the longest of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from bench.training.job import Job, Outcome
from bench.training.workers.clock import counted_pairs, main, settings, timed


class MarginTrainer(Trainer):
    """Margin MSE of each query's first document against the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: accumulation must divide

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        targets_BD = inputs.pop("targets")
        scores_BD = model(**inputs).logits.float().view_as(targets_BD)
        margins, wanted = (values[:, :1] - values[:, 1:] for values in (scores_BD, targets_BD))
        return torch.nn.functional.mse_loss(margins, wanted)


def measure(job: Job) -> Outcome:
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(job.checkpoint, num_labels=1)
    examples = [
        {
            "pairs": tokenizer([group.query] * len(group.documents), list(group.documents), truncation="only_second"),
            "targets": group.targets,
        }
        for group in job.groups
    ]

    def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        names = batch[0]["pairs"].keys()
        flat = {name: [row for example in batch for row in example["pairs"][name]] for name in names}
        targets = torch.tensor([example["targets"] for example in batch])
        return {**tokenizer.pad(flat, return_tensors="pt"), "targets": targets}

    arguments = TrainingArguments(**settings(job), remove_unused_columns=False)
    data: Any = examples
    trainer = MarginTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    return timed(trainer, job, counted_pairs(job), 0)


if __name__ == "__main__":
    main(measure)
