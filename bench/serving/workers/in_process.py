"""A library in the worker's own process, as its users call it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bench.serving.cells import Option
from bench.serving.load import Score


class InProcess(ABC):
    """A library that several threads call, at the same time or one after another. The bench tries both."""

    def __init__(self, batch_size: int, versions: dict[str, str]) -> None:
        self.batch_size, self.versions = batch_size, versions
        self._turn: AbstractContextManager[Any] = nullcontext()

    def use(self, option: Option) -> None:
        self.batch_size = option["batch_size"]
        # A lock serves one caller at a time.
        self._turn = nullcontext() if option["together"] else threading.Lock()

    def connect(self) -> Score:
        return self._score

    @abstractmethod
    def scores(self, query: str, documents: tuple[str, ...]) -> list[float]:
        """The score of each document, in the order given, ``batch_size`` at a time."""

    def _score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        with self._turn:
            return self.scores(query, documents)
