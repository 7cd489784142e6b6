"""trl: SFTTrainer with packing, loss on the document's side only; tokenised and packed before the loop.

``option`` of the shape is the packing strategy and the length of a row, as in ``bfd 1024``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.training.job import Job, Outcome
from bench.training.workers.clock import main, settings, timed
from bench.training.workers.decoder_pairs import Pair, pairs_of


def measure(job: Job) -> Outcome:
    strategy, row_length = job.shape.option.split()
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    pairs = [pair for group in job.groups for pair in pairs_of(group, tokenizer, job.checkpoint)]
    arguments = SFTConfig(
        **settings(job), packing=True, packing_strategy=strategy, max_length=int(row_length), completion_only_loss=True
    )
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows(pairs), processing_class=tokenizer)
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    first, last = (steps * job.shape.per_step for steps in (job.warm_up, job.warm_up + job.steps))
    if job.speed_counts and len(lengths) < last:
        raise ValueError(f"{len(lengths)} packed rows of {row_length} tokens; {last} are needed")
    documents = sum(lengths[first:last]) * len(pairs) / sum(len(pair.token_ids) for pair in pairs)
    leaks = leaking(trainer, pairs)
    outcome = timed(trainer, job, documents, 0, ("trl", "datasets"))
    return replace(outcome, notes={"leaks": leaks})


def rows(pairs: Sequence[Pair]) -> Dataset:
    masks = [[int(place >= pair.document_start) for place in range(len(pair.token_ids))] for pair in pairs]
    return Dataset.from_dict({"input_ids": [pair.token_ids for pair in pairs], "completion_mask": masks})


@torch.no_grad()
def leaking(trainer: Any, pairs: Sequence[Pair]) -> bool:
    """Tell whether the logits of a pair depend on the other pairs of the row, as the trainer packs it."""
    model = trainer.model.eval()
    example, pair, start = _inside(trainer.train_dataset, pairs)
    batch = trainer.data_collator([example])
    inputs = {name: values for name, values in batch.items() if name not in ("labels", "seq_lengths")}
    packed = model(**inputs, use_cache=False).logits[0, start : start + len(pair.token_ids)]
    alone = model(torch.tensor([pair.token_ids]), use_cache=False).logits[0]
    return not torch.allclose(packed, alone, atol=1e-3)


def _inside(packed: Dataset, pairs: Sequence[Pair]) -> tuple[dict[str, Any], Pair, int]:
    """A packed row, a pair that lies whole in it but not at its beginning, and the pair's place."""
    for example in packed:
        row = example["input_ids"]
        starts = [place for place in range(1, len(row)) if row[place] == pairs[0].token_ids[0]]
        for start in starts:
            for pair in pairs:
                if row[start : start + len(pair.token_ids)] == pair.token_ids:
                    return example, pair, start
    raise ValueError("no packed row holds two pairs: it is too short")


if __name__ == "__main__":
    main(measure)
