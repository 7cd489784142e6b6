"""The processes of the systems. Each is started once, asked question by question, and watched with all its children."""

from __future__ import annotations

import pickle
import select
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.environments import BenchError, last_line, worker_variables
from bench.serving.load import Cell, LoadError, Sample

STOP_S = 60
WATCH_S = 0.5


@dataclass(frozen=True)
class Measured:
    """A system in one cell of one round. Memory is the highest seen of the whole family of processes."""

    sample: Sample
    cpu_seconds: float
    memory_bytes: int

    @property
    def cpu_per_thousand(self) -> float:
        """Seconds of all cores for 1,000 documents, client included."""
        return 1000 * self.cpu_seconds / self.sample.documents


class Running:
    """A system's process, which can be asked. Raises BenchError with the system's name whenever the system fails."""

    def __init__(self, name: str, python: Path, module: str, setup: dict[str, Any], work: Path) -> None:
        self.name = name
        self._log = work / ("".join(letter if letter.isalnum() else "-" for letter in name) + ".log")
        # -P: no folder of the run is taken for a package.
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [str(python), "-P", "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=worker_variables(setup["threads"]), cwd=work,
            )  # fmt: skip
        assert process.stdin and process.stdout
        self._process, self._questions, self._answers = process, process.stdin, process.stdout
        self._family = psutil.Process(process.pid)
        try:
            self._say(setup)
            self.versions: dict[str, str] = self._hear()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer of the worker's method."""
        self._say((method, arguments))
        return self._hear()

    def load(self, cell: Cell, seed: int = 0, hot: bool = False) -> Measured:
        """With ``hot``, the documents that will be repeated are sent once before."""
        before = self._cpu_seconds()
        self._say(("load", (cell, seed, hot)))
        seen = [family_memory(self._everyone())]
        while not select.select([self._answers], [], [], WATCH_S)[0]:
            seen.append(family_memory(self._everyone()))
        return Measured(self._hear(), self._cpu_seconds() - before, max(seen))

    def close(self) -> None:
        """End the questions, then the process."""
        with suppress(BrokenPipeError):  # it may have ended
            self._questions.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for process in reversed(self._everyone()):
                process.kill()
            self._process.wait()
        self._answers.close()

    def _say(self, question: Any) -> None:
        with suppress(BrokenPipeError):  # that it ended is heard
            pickle.dump(question, self._questions)
            self._questions.flush()

    def _hear(self) -> Any:
        try:
            answer = pickle.load(self._answers)
        except EOFError:
            with suppress(subprocess.TimeoutExpired):  # its last words come after its answers end
                self._process.wait(STOP_S)
            words = self._log.read_text(encoding="utf-8", errors="replace")
            raise BenchError(f"{self.name}: {last_line(words)}") from None
        if isinstance(answer, LoadError):
            raise BenchError(f"{self.name}: {answer}")
        return answer

    def _everyone(self) -> list[psutil.Process]:
        try:
            return [self._family, *self._family.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []  # it has ended: the next question says so

    def _cpu_seconds(self) -> float:
        total = 0.0
        for process in self._everyone():
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                total += sum(process.cpu_times()[:2])
        return total


def family_memory(processes: list[psutil.Process]) -> int:
    """Bytes that would be free without them: each process's own memory, and their shared memory once."""
    own, shared = 0, 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            memory = process.memory_full_info()
            own, shared = own + memory.uss, max(shared, memory.rss - memory.uss)
    return int(own + shared)
