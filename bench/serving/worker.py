"""The process of one system, which answers the bench's questions from standard input. Standard library only.

A question is the pickled name of a method and its arguments. Its answer is what the method returns, or the LoadError
of a question that failed; the next may follow.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

from bench.serving.load import Cell, LoadError, Option, Pair, Sample, Score, measure
from bench.serving.traffic import Traffic


class Worker(ABC):
    """A system that runs. ``traffic`` is put there before the first question."""

    versions: dict[str, str]
    traffic: Traffic

    @abstractmethod
    def connect(self) -> Score:
        """A caller's connection."""

    def scores(self, pairs: Sequence[Pair]) -> list[list[float]]:
        score = self.connect()
        return [[float(value) for value in score(query, tuple(texts))] for query, texts in pairs]

    def load(self, cell: Cell, seed: int, hot: bool) -> Sample:
        """With ``hot``, the documents that will be repeated are sent once before."""
        if hot:
            self.connect()(self.traffic.queries[0], tuple(self.traffic.hot))
        return measure(self.connect, self.traffic.requests(cell.documents, cell.repeated, seed), cell)


class InProcess(Worker):
    """A library that several callers call, at the same time or one after another. The bench tries both."""

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
    def score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        """The score of each document, in the order given, ``batch_size`` at a time."""

    def _score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        with self._turn:
            return self.score(query, documents)


def main(opened: Callable[[dict[str, Any]], AbstractContextManager[Worker]]) -> None:
    """A worker's command. The first question is the setup: ``traffic``, and whatever the system needs."""
    # Libraries print; the bench reads the real standard output.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        setup = pickle.load(sys.stdin.buffer)
        with opened(setup) as worker:
            worker.traffic = Traffic(setup["traffic"])
            serve(worker, sys.stdin.buffer, answers)


def serve(worker: Worker, questions: BinaryIO, answers: BinaryIO) -> None:
    """Report the versions of the system, which is ready, and answer until the questions end."""
    answer: Any = worker.versions
    while True:
        pickle.dump(answer, answers)
        answers.flush()
        try:
            name, arguments = pickle.load(questions)
        except EOFError:
            return
        try:
            answer = getattr(worker, name)(*arguments)
        except Exception as error:  # whatever a library raises is the bench's to report
            answer = LoadError(f"{type(error).__name__}: {error}")
