"""Numbers that a process shows its sisters, the other processes of the same Triton, without being asked.

They lie in memory without a name: it is the process's own, ends with it, and cannot be opened by other users. Only the
standard library and numpy are needed. A link to this file lies in the tokenizer's folder, because Triton shows a model
its own folder only.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

NUMBERS = 2**14  # of a board; what is beyond them is not shown
HEAD = 2  # how often it was written, which is odd in the middle of it, and how many numbers there are
TRIES = 3  # of reading between two writings


class Board:
    """Where this process shows numbers, for those who look for ``name``."""

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(_file_name(name, os.getpid()))
        os.ftruncate(self._file, 8 * NUMBERS)
        self._cells = np.frombuffer(mmap.mmap(self._file, 8 * NUMBERS), np.float64)

    def show(self, numbers: Numbers) -> None:
        shown = numbers[: NUMBERS - HEAD]
        self._cells[0] += 1
        self._cells[1] = len(shown)
        self._cells[HEAD : HEAD + len(shown)] = shown
        self._cells[0] += 1

    def close(self) -> None:
        os.close(self._file)


class Boards:
    """The boards of a name of all sisters, as far as ``look`` has found them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[int, Numbers] = {}  # by the process that shows them

    def look(self) -> None:
        """Find what has come since, and forget what has gone."""
        sisters = _sisters()
        found = {process: cells for process, cells in self._found.items() if process in sisters}
        for process in sisters - found.keys():
            with suppress(OSError, ValueError):  # it has ended meanwhile, or its board is being made
                for path in Path(f"/proc/{process}/fd").iterdir():
                    # With the process in its name: those who have read it have it open, too.
                    if str(path.readlink()) == f"/memfd:{_file_name(self._name, process)} (deleted)":
                        found[process] = _opened(path)
                        break
        self._found = found

    def read(self) -> list[Numbers]:
        """The numbers of each board, without those that are being written all the time."""
        return [numbers for cells in self._found.values() if (numbers := _read(cells)) is not None]


def _file_name(name: str, process: int) -> str:
    return f"disranker-{name}-{process}"


def _opened(path: Path) -> Numbers:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 8 * NUMBERS, prot=mmap.PROT_READ), np.float64)


def _read(cells: Numbers) -> Numbers | None:
    for _ in range(TRIES):
        before, count = cells[:HEAD].tolist()
        numbers = cells[HEAD : HEAD + int(count)].copy()
        if before and before % 2 == 0 and cells[0] == before:
            return numbers
    return None


def _sisters() -> set[int]:
    """The processes with the same parent. A kernel that does not list them has no boards to be read."""
    listed = set[int]()
    for children in Path(f"/proc/{os.getppid()}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            listed.update(map(int, children.read_text(encoding="ascii").split()))
    return listed
