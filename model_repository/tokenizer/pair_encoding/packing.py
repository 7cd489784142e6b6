"""Pairs of token ids, one after the other, and the packed rows that a model reads.

This is the one place where rows are laid out: for training, and for serving in front of a TensorRT plan (this
folder) or behind the queue of a student in Triton's Python backend (a link to this file lies in its folder, because
Triton shows a model its own folder only). It therefore needs numpy and nothing else.

    flat pairs    aaaaa bbb cccc dd        (lengths 5, 3, 4, 2)
    packed rows   aaaaabbb                 segment_ids 11111222, pool_positions 0 5
                  ccccdd..                 segment_ids 11112200, pool_positions 0 4
    slots         a 0, b 1, c 2, d 3       (rows of 8 tokens with 2 slots)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Rows = tuple[IntArray, ...]  # an array [R, L] or [R, S] for each of INPUTS


class Pair(NamedTuple):
    """One query-document pair. ``document_start`` is the index of the first token on the document's side: there the
    second token type begins (encoder), and continued pre-training starts to pay loss."""

    token_ids: IntArray
    document_start: int
    truncated: bool


@dataclass(frozen=True, eq=False)
class FlatPairs:
    """Pairs one after the other. It has a length and can be iterated as a list of pairs can."""

    token_ids: IntArray  # [T]
    lengths: Counts  # [N]; they sum to T
    document_starts: Counts  # [N]
    truncated: Flags  # [N], whether the query or the document was cut

    @classmethod
    def join(cls, parts: Sequence[FlatPairs]) -> FlatPairs:
        """All pairs of the parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.document_starts for part in parts]),
            np.concatenate([part.truncated for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Pair]:
        parts = np.split(self.token_ids, np.cumsum(self.lengths)[:-1]) if len(self) else []
        yield from map(Pair, parts, self.document_starts.tolist(), self.truncated.tolist())

    def __getitem__(self, chosen: slice | Counts) -> FlatPairs:
        """The pairs of a slice, or those at the given indices, in that order."""
        lengths = self.lengths[chosen]
        token_ids = self.token_ids[spans(firsts(self.lengths)[chosen], lengths)]
        return FlatPairs(token_ids, lengths, self.document_starts[chosen], self.truncated[chosen])


class PackedBatch(NamedTuple):
    """Pairs in rows, all int32. Slot ``r * S + s`` of ``slots`` is pair ``s`` of row ``r``."""

    input_ids: IntArray  # [R, L]
    token_type_ids: IntArray  # [R, L], 1 on the document's side (encoder style only)
    position_ids: IntArray  # [R, L], restart in each pair at the offset, 0 in empty slots
    segment_ids: IntArray  # [R, L], 1.. within a row, 0 = empty slot
    pool_positions: IntArray  # [R, S], the token that stands for the pair, 0 where no pair is
    slots: IntArray  # [N], in the caller's order
    starts: IntArray  # [N], the first token of each pair: place ``r * L + l`` is token slot ``l`` of row ``r``

    @property
    def rows(self) -> Rows:
        """The arrays that a model reads, named by INPUTS."""
        return self[: len(INPUTS)]


INPUTS = PackedBatch._fields[:5]


class Fit(NamedTuple):
    """Where each of N pairs lies: its row, its place among the row's pairs, and its first token slot."""

    rows: Counts
    places: Counts
    starts: Counts


class Layout(NamedTuple):
    """How an artefact's pairs lie in rows; ``pool_last`` for decoders, whose last token stands for the pair."""

    row_length: int
    slots_per_row: int
    pool_last: bool = False
    position_offset: int = 0

    def pack(self, pairs: FlatPairs) -> PackedBatch:
        """First-fit decreasing: the longest pair first, each into the first row with room and a slot.

        Raises ValueError for no pairs and for a pair longer than a row.
        """
        if not len(pairs):
            raise ValueError("no pairs to pack")
        lengths = pairs.lengths
        if lengths.max() > self.row_length:
            raise ValueError(
                f"pair {int(lengths.argmax())} has {int(lengths.max())} tokens; a row has {self.row_length}"
            )
        return self.filled(pairs, first_fit(lengths, self.row_length, self.slots_per_row))

    def filled(self, pairs: FlatPairs, fit: Fit) -> PackedBatch:
        """The rows in which the pairs lie as ``fit`` says."""
        lengths = pairs.lengths
        count, length, slots = int(fit.rows.max()) + 1, self.row_length, self.slots_per_row
        starts = fit.rows * length + fit.starts
        places_T = spans(starts, lengths)
        within_T = np.arange(len(places_T)) - np.repeat(firsts(lengths), lengths)
        on_document = 0 if self.pool_last else within_T >= np.repeat(pairs.document_starts, lengths)
        columns = (pairs.token_ids, on_document, within_T + self.position_offset, np.repeat(fit.places + 1, lengths))
        arrays_4RL = np.zeros((len(columns), count, length), dtype=np.int32)
        for array, column in zip(arrays_4RL, columns, strict=True):
            array.reshape(-1)[places_T] = column
        pool_positions = np.zeros((count, slots), dtype=np.int32)
        pool_positions[fit.rows, fit.places] = fit.starts + lengths - 1 if self.pool_last else fit.starts
        slots_N = (fit.rows * slots + fit.places).astype(np.int32)
        return PackedBatch._make([*arrays_4RL, pool_positions, slots_N, starts.astype(np.int32)])


def first_fit(lengths: Counts, row_length: int, slots_per_row: int) -> Fit:
    """Each pair, the longest first, in the first row with room for it and a free slot.

    Plain integers: for some hundred rows they are quicker than arrays. The search resumes where it stood as long as
    lengths are the same, since a row without room for one has none for the next.
    """
    sizes = lengths.tolist()
    rows, places, starts = ([0] * len(sizes) for _ in range(3))
    room, used, free = [row_length], [0], [0]  # by row: token slots left, pairs, first free token slot
    row, last = 0, 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = sizes[index]
        if length != last:
            row, last = 0, length
        while room[row] < length:
            row += 1
            if row == len(room):
                room.append(row_length)
                used.append(0)
                free.append(0)
        rows[index], places[index], starts[index] = row, used[row], free[row]
        used[row] += 1
        free[row] += length
        room[row] = row_length - free[row] if used[row] < slots_per_row else -1
    return Fit(np.array(rows), np.array(places), np.array(starts))


def unpack(scores: FloatArray, slots: IntArray) -> FloatArray:
    """``scores[R, S]`` and ``slots[N]`` to scores[N] in the caller's order."""
    return np.asarray(scores).reshape(-1)[slots]


def chunks(rows: Rows, count: int) -> Iterator[Rows]:
    """The rows in parts of at most ``count``."""
    for start in range(0, len(rows[0]), count):
        yield tuple(array[start : start + count] for array in rows)


def firsts(lengths: Counts) -> Counts:
    """Where each begins, if they lie one after the other."""
    return np.cumsum(lengths) - lengths


def spans(starts: Counts, lengths: Counts) -> Counts:
    """All places of spans that begin at ``starts``, one span after the other."""
    places: Counts = np.repeat(starts - firsts(lengths), lengths) + np.arange(int(lengths.sum()))
    return places
