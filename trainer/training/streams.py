"""The groups that a stage trains on: all in memory, or read again in each epoch and shuffled within a buffer.

Every process reads all of a stream, and Accelerate's IterableDatasetShard takes the part of the process from each
step: the steps are those of one process. A query is drawn from those in the buffer, and the next one of the file
takes its place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from tqdm import tqdm
from transformers import TrainingArguments

from trainer.data.records import DataError, QueryGroup, iter_groups, iter_numbered
from trainer.training.batches import SKIPPED, TrainingGroup, draw_documents
from trainer.training.held_out import HeldOut
from trainer.training.mix import Mix, mix_of

Take = Callable[[QueryGroup], TrainingGroup | None]  # the part of a query that a stage trains on; None leaves it out


@dataclass
class DataArguments:
    """Queries with their documents, and how they are read."""

    data: list[str] = field(metadata={"help": "Queries with documents: JSONL, Parquet, or ir_datasets:ID."})
    mix: list[float] | None = field(
        default=None,
        metadata={"help": "A weight for each of --data, by which an epoch draws from it; by default all come once."},
    )
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
        if self.mix is not None and not (len(self.mix) == len(self.data) and all(0 < w < math.inf for w in self.mix)):
            raise DataError(f"--mix takes a finite weight above 0 for each --data, {len(self.data)}, not {self.mix}")

    def groups(self, *sources: str) -> Iterator[QueryGroup]:
        """Those of ``sources``, or of all data."""
        return iter_groups(*(sources or self.data), label_scale=self.label_scale)


class GroupList(Dataset[TrainingGroup]):
    """Groups in memory; documents, and the groups of a mix, are drawn again in each epoch."""

    def __init__(
        self, groups: Sequence[TrainingGroup], documents_per_query: int | None, seed: int, mix: Mix | None = None
    ) -> None:
        self.pairs = sum(len(group.documents) for group in groups)
        self._groups, self._count, self._seed, self._mix = groups, documents_per_query, seed, mix
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._places = range(len(self._groups)) if self._mix is None else self._mix.places(epoch)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> TrainingGroup:
        return draw_documents(self._groups[self._places[index]], self._count, self._seed, self._epoch, index)


class GroupStream(IterableDataset[TrainingGroup]):
    """Groups of files that are read again in each epoch.

    ``groups`` is their number, ``pairs`` that of their documents. ``groups_per_step`` is how many all processes take
    together in one forward pass: of several workers, each reads whole steps.
    """

    def __init__(
        self,
        arguments: DataArguments,
        take: Take,
        groups: int,
        pairs: int,
        seed: int,
        groups_per_step: int,
        mix: Mix | None = None,
    ) -> None:
        self.pairs = pairs
        self._arguments, self._take, self._groups, self._mix = arguments, take, groups, mix
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
        sets = [partial(self._taken, source) for source in self._arguments.data]
        groups = self._taken() if self._mix is None else self._mix.stream(sets, self._epoch)
        for place, group in enumerate(groups):
            yield draw_documents(group, self._arguments.documents_per_query, self._seed, self._epoch, place)

    def _taken(self, *sources: str) -> Iterator[TrainingGroup]:
        return filter(None, map(self._take, self._arguments.groups(*sources)))


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
    last one. Queries of weight 0 are left out, too. A line says how many are ``held_out`` queries. Raises DataError
    where no query is left, besides the errors of the readers, of the check and of the mix.
    """
    kept: list[TrainingGroup] = []
    sizes, queries, pairs, weightless = [0] * len(arguments.data), 0, 0, ""
    take = partial(_of_some_weight, take)
    for source, group in _numbered(arguments, training, held_out):
        queries += 1
        if not group.weight:
            weightless = ", or the weight is 0"
        if (chosen := take(group)) is not None:
            sizes[source] += 1
            pairs += len(chosen.documents)
            if arguments.shuffle_buffer is None:
                kept.append(chosen)
    if check is not None:
        check()
    reason_left_out += weightless
    if not (taken := sum(sizes)):
        raise DataError(f"{arguments.data[0]}: {reason_left_out}: nothing is left to train on")
    if taken < queries and training.should_save:
        print(f"{queries - taken:,} of {queries:,} queries are left out: {reason_left_out}", file=sys.stderr)
    mix = None if arguments.mix is None else mix_of(arguments.mix, arguments.data, sizes, training.seed)
    if kept:
        return GroupList(kept, arguments.documents_per_query, training.seed, mix)
    at_once = training.train_batch_size * training.world_size
    return GroupStream(arguments, take, taken, pairs, training.seed, at_once, mix)


def _numbered(
    arguments: DataArguments, training: TrainingArguments, held_out: HeldOut | None
) -> Iterable[tuple[int, QueryGroup]]:
    """Each query with the place of its source in ``--data``, once, behind a progress bar."""
    silent = training.disable_tqdm or not training.should_save
    numbered = iter_numbered(*arguments.data, label_scale=arguments.label_scale)
    everything = tqdm(numbered, desc="reading", unit="query", delay=5, disable=silent)
    return held_out.trained_on(everything) if held_out and training.should_save else everything


def _of_some_weight(take: Take, group: QueryGroup) -> TrainingGroup | None:
    chosen = take(group)
    return chosen if group.weight else None
