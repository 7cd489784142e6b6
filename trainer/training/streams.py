"""The groups that a stage trains on: all in memory, or read again in each epoch and shuffled within a buffer.

Every process reads all of a stream, and Accelerate's IterableDatasetShard takes the part of the process from each
step: the steps are those of one process. A query is drawn from those in the buffer, and the next one of the file
takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from tqdm import tqdm
from transformers import TrainingArguments

from trainer.data.records import DataError, QueryGroup, iter_groups
from trainer.training.batches import SKIPPED, TrainingGroup, draw_documents
from trainer.training.held_out import HeldOut

Take = Callable[[QueryGroup], TrainingGroup | None]  # the part of a query that a stage trains on; None leaves it out


@dataclass
class DataArguments:
    """Queries with their documents, and how they are read."""

    data: list[str] = field(metadata={"help": "Queries with documents: JSONL, Parquet, or ir_datasets:ID."})
    label_scale: list[float] | None = field(
        default=None, metadata={"help": "Lowest and highest label; a label outside is an error."}
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={"help": "Read the data again in each epoch, with this many queries in memory; all by default."},
    )
    documents_per_query: int | None = field(
        default=None, metadata={"help": "Documents of a query in one step, drawn again in each epoch; all by default."}
    )

    def __post_init__(self) -> None:
        if self.label_scale is not None and (len(self.label_scale) != 2 or self.label_scale[0] > self.label_scale[1]):
            raise DataError("--label_scale takes the lowest and the highest label")
        if self.shuffle_buffer is not None and self.shuffle_buffer < 1:
            raise DataError(f"--shuffle_buffer must be at least 1, not {self.shuffle_buffer}")

    def groups(self) -> Iterator[QueryGroup]:
        return iter_groups(*self.data, label_scale=self.label_scale)


class GroupList(Dataset[TrainingGroup]):
    """Groups in memory; documents are drawn again in each epoch."""

    def __init__(self, groups: Sequence[TrainingGroup], documents_per_query: int | None, seed: int) -> None:
        self._groups, self._count, self._seed, self._epoch = groups, documents_per_query, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> TrainingGroup:
        return draw_documents(self._groups[index], self._count, self._seed, self._epoch, index)


class GroupStream(IterableDataset[TrainingGroup]):
    """Groups of files that are read again in each epoch.

    ``groups`` is their number. ``groups_per_step`` is how many all processes take together in one forward pass: of
    several workers, each reads whole steps.
    """

    def __init__(self, arguments: DataArguments, take: Take, groups: int, seed: int, groups_per_step: int) -> None:
        self._arguments, self._take, self._groups = arguments, take, groups
        self._seed, self._epoch, self._skipped = seed, 0, 0
        self._groups_per_step = groups_per_step

    def __len__(self) -> int:
        return self._groups

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def resume_at(self, epoch: float) -> None:
        """Begin where a run was interrupted: groups that it was trained on come as SKIPPED and are not encoded."""
        steps = -(-self._groups // self._groups_per_step)
        self._epoch, self._skipped = int(epoch), round(epoch % 1 * steps) * self._groups_per_step

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, this_one = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for place, group in enumerate(self._shuffled()):
            if place // self._groups_per_step % workers == this_one:
                yield SKIPPED if place < self._skipped else group

    def _shuffled(self) -> Iterator[TrainingGroup]:
        draw, size = np.random.default_rng((self._seed, self._epoch)), self._arguments.shuffle_buffer or 1
        waiting: list[TrainingGroup] = []
        for group in self._drawn():
            if len(waiting) < size:
                waiting.append(group)
                continue
            place = int(draw.integers(size))
            yield waiting[place]
            waiting[place] = group
        yield from (waiting[place] for place in draw.permutation(len(waiting)).tolist())

    def _drawn(self) -> Iterator[TrainingGroup]:
        taken = filter(None, map(self._take, self._arguments.groups()))
        for place, group in enumerate(taken):
            yield draw_documents(group, self._arguments.documents_per_query, self._seed, self._epoch, place)


def training_groups(
    arguments: DataArguments,
    take: Take,
    training: TrainingArguments,
    reason_left_out: str,
    check: Callable[[], None] | None = None,
    held_out: HeldOut | None = None,
) -> GroupList | GroupStream:
    """The data of a stage, read once and checked; prints on standard error how many queries were left out, and why.

    ``take`` gives the part of each query to train on, or None for ``reason_left_out``. ``check`` is called after the
    last one. A line says how many are ``held_out`` queries, too. Raises DataError where no query is left, besides the
    errors of the readers and of the check.
    """
    silent = training.disable_tqdm or not training.should_save
    everything = tqdm(arguments.groups(), desc="reading", unit="query", delay=5, disable=silent)
    kept: list[TrainingGroup] = []
    queries = taken = 0
    for group in everything if held_out is None or not training.should_save else held_out.trained_on(everything):
        queries += 1
        if (chosen := take(group)) is not None:
            taken += 1
            if arguments.shuffle_buffer is None:
                kept.append(chosen)
    if check is not None:
        check()
    if not taken:
        raise DataError(f"{arguments.data[0]}: {reason_left_out}: nothing is left to train on")
    if taken < queries and training.should_save:
        print(f"{queries - taken:,} of {queries:,} queries are left out: {reason_left_out}", file=sys.stderr)
    if kept:
        return GroupList(kept, arguments.documents_per_query, training.seed)
    at_once = training.train_batch_size * training.world_size
    return GroupStream(arguments, take, taken, training.seed, at_once)
