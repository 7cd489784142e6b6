"""trl: RewardTrainer, a row for each two documents of a query with different grades; tokenised before the loop.

It runs a document through the model once for each comparison that the document is in.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from bench.training.job import Job, Outcome
from bench.training.workers.clock import main, settings, timed
from bench.training.workers.decoder_pairs import pairs_of


def measure(job: Job) -> Outcome:
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(job.checkpoint, num_labels=1, dtype=torch.float32)
    data = comparisons(job, tokenizer)
    needed = job.shape.per_step * (job.warm_up + job.steps)
    if len(data) < needed:
        raise ValueError(f"{len(data)} comparisons; {needed} are needed")
    arguments = RewardConfig(**settings(job), max_length=None)
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    counted = job.shape.per_step * job.steps
    return timed(trainer, job, 2 * counted, counted, ("trl", "datasets"))


def comparisons(job: Job, tokenizer: Any) -> Dataset:
    chosen, rejected = [], []
    for group in job.groups:
        judged = list(zip(pairs_of(group, tokenizer, job.checkpoint), group.targets, strict=True))
        for better, high in judged:
            for worse, low in judged:
                if high > low:
                    chosen.append(better.token_ids)
                    rejected.append(worse.token_ids)
    return Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})


if __name__ == "__main__":
    main(measure)
