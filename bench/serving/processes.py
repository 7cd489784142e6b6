"""The processes of the systems. Each is started once, asked by lines of JSON, and watched with all its children."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.environments import BenchError, last_line, worker_variables
from bench.serving.cells import Cell, Option, Sample

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
    """A system's process. Every call raises BenchError with the system's name if the system fails."""

    def __init__(self, name: str, python: Path, module: str, setup: dict[str, Any], work: Path) -> None:
        self.name, self._log = name, work / f"{_plain(name)}.log"
        settings = work / f"{_plain(name)}.json"
        settings.write_text(json.dumps(setup), encoding="utf-8")
        # -P: no folder of the run is taken for a package.
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), "-P", "-m", module, str(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8",
                env=worker_variables(setup["threads"]), cwd=work,
            )  # fmt: skip
        self._family = psutil.Process(self._process.pid)

    def wait(self) -> dict[str, str]:
        """Wait until it can be asked. Returns the versions of its libraries."""
        versions: dict[str, str] = self._hear()["versions"]
        return versions

    def scores(self, pairs: list[Any]) -> list[list[float]]:
        scores: list[list[float]] = self._ask({"ask": "scores", "pairs": pairs})["scores"]
        return scores

    def use(self, option: Option) -> None:
        self._ask({"ask": "use", "option": option})

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        return self._ask({"ask": "call", "name": name, "arguments": arguments})

    def load(self, cell: Cell, seed: int = 0, hot: bool = False) -> Measured:
        """With ``hot``, the documents that will be repeated are sent once before."""
        question = {"ask": "load", "cell": asdict(cell), "seed": seed, "hot": hot}
        with self._watched() as seen:
            before = self._cpu_seconds()
            answer = self._ask(question)
            seconds = self._cpu_seconds() - before
        return Measured(Sample(**answer), seconds, max(seen))

    def close(self) -> None:
        """End the questions, then the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it may have ended
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for process in reversed(self._everyone()):
                process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def _ended(self) -> BenchError:
        with suppress(subprocess.TimeoutExpired):  # its last words come after its answers end
            self._process.wait(STOP_S)
        return BenchError(f"{self.name}: {last_line(self._log.read_text(encoding='utf-8', errors='replace'))}")

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

    @contextmanager
    def _watched(self) -> Iterator[list[int]]:
        """Memory in bytes, read twice a second by a thread."""
        seen, done = [family_memory(self._everyone())], threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_S):
                seen.append(family_memory(self._everyone()))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            done.set()
            thread.join()


def family_memory(processes: list[psutil.Process]) -> int:
    """Bytes that would be free without them: each process's own memory, and their shared memory once."""
    own, shared = 0, 0
    for process in processes:
        try:
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
        own, shared = own + memory.uss, max(shared, memory.rss - memory.uss)
    return int(own + shared)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
