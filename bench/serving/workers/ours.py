"""Our own: Triton with the built repository, over gRPC by client.rank, a connection for each caller."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.children import serving
from bench.serving.load import Cell, Score, Way, measure
from bench.serving.worker import Worker, main
from client import RankingClient
from client.wire import TIMES, Times, mean_times

TIMEOUT_S = 120
PACKAGES = ("nvidia-pytriton", "openvino", "onnxruntime", "tokenizers", "tritonclient")
COUNTERS = ("calls", "tokens", "seconds")  # of the engine
SHOWN_S = 1.25  # a counter is shown every second


class OursWorker(Worker):
    def __init__(self, ports: dict[str, int]) -> None:
        self._url = f"127.0.0.1:{ports['grpc']}"
        self._metrics = f"http://127.0.0.1:{ports['metrics']}/metrics"
        self.versions = {name: version(name) for name in PACKAGES}

    def connect(self, told: list[Times] | None = None) -> Score:
        """A caller's connection, whose requests' times go to ``told``."""
        score = RankingClient(self._url, timeout_s=TIMEOUT_S).score

        def explained(query: str, documents: tuple[str, ...]) -> list[float]:
            TIMES.set(told)  # in the caller's thread
            return score(query, documents)

        return explained

    def way(self, cell: Cell, seed: int) -> Way:
        """Where the time of a cell's requests goes, of which each asks."""
        if cell.repeated:
            self.connect()(self.traffic.queries[0], tuple(self.traffic.hot))
        before, told = self._counted(), list[Times]()
        requests = self.traffic.requests(cell.documents, cell.repeated, seed)
        sample = measure(partial(self.connect, told), requests, cell)
        after = self._counted()
        calls, tokens, engine_s = (after[name] - before[name] for name in COUNTERS)
        seconds = sample.documents / sample.documents_per_second
        parts = {
            f"{name.removesuffix('_MS').lower()} {part}": ms
            for name, of_step in mean_times(told).items()
            for part, ms in of_step.items()
        }
        return Way(sample, parts, engine_s / seconds, calls / seconds, tokens / calls)

    def _counted(self) -> dict[str, float]:
        """The engine's counters, once they stand still."""
        before, shown = None, self._shown()
        while shown != before:
            time.sleep(SHOWN_S)
            before, shown = shown, self._shown()
        return shown

    def _shown(self) -> dict[str, float]:
        with urllib.request.urlopen(self._metrics) as answer:
            lines = [line.split() for line in answer.read().decode().splitlines()]
        return {
            name: sum(float(line[-1]) for line in lines if line[0].startswith(f"disranker_engine_{name}{{"))
            for name in COUNTERS
        }


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[OursWorker]:
    """``repository`` is built; the server's log is beside it."""
    repository = Path(setup["repository"])
    with serving(repository, repository.with_name(f"{repository.name}.log")) as (_, ports):
        yield OursWorker(ports)


if __name__ == "__main__":
    main(opened)
