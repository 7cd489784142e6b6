"""sentence-transformers: CrossEncoderTrainer with MarginMSELoss over lists, a row a query with all its documents.

Its loss tokenises inside the loop and makes one forward pass for each place of the list.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MarginMSELoss
from torch import nn
from torch.utils.data import SequentialSampler

from bench.training.job import Job, Outcome
from bench.training.workers.clock import counted_pairs, main, settings, timed


def measure(job: Job) -> Outcome:
    model = CrossEncoder(job.checkpoint, num_labels=1, activation_fn=nn.Identity(), device="cpu")
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**settings(job), batch_sampler=in_order),
        train_dataset=rows(job),
        loss=MarginMSELoss(model),
    )
    return timed(trainer, job, counted_pairs(job), 0, ("sentence-transformers", "datasets"))


def rows(job: Job) -> Dataset:
    """Columns query, document_0, .. and the scores of all documents, which the loss makes margins of."""
    columns: dict[str, list[Any]] = {"query": [group.query for group in job.groups]}
    for place, texts in enumerate(zip(*(group.documents for group in job.groups), strict=True)):
        columns[f"document_{place}"] = list(texts)
    return Dataset.from_dict({**columns, "label": [list(group.targets) for group in job.groups]})


def in_order(dataset: Any, **options: Any) -> DefaultBatchSampler:
    return DefaultBatchSampler(SequentialSampler(dataset), **options)


if __name__ == "__main__":
    main(measure)
