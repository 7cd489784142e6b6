"""Engines for processors: the float32 graph, quantised for int8, and tuned for this machine's cores."""

from __future__ import annotations

import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from engines.builders import Builder
from engines.graph.export import export_graph
from engines.job import Job
from engines.quantise.int8 import Library, quantise
from engines.records import BuiltEngine, CpuEngine, Graph, RowRunner, Timing, runner
from model_repository.student.runtime.graphs import ProcessorGraph, cores
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import FlatPairs

OPSET = 20  # of the ONNX operators that both libraries read; it has Gelu in one
CANDIDATES = (4, 8, 16, 32)  # rows a call; fewer are as fast alone, but lose a tenth where they are served
LEAST_ROWS = 8  # that a time is taken of
REPETITIONS = 3
ALIKE = 0.9  # of the best speed: differences below are noise, or not worth longer calls


class ProcessorBuilder(Library, Builder):
    """Builds with one library. A model is a graph in the library's own form.

    int8 is in the graph. All other products are computed in the precision that was asked for, or, without units for
    it, in the one that the library takes instead.

    rest_of_int8: the precision that is asked for where int8 leaves a product.
    opens: the class that opens a model's file, here and in the server.
    """

    rest_of_int8: str
    version: str
    opens: type[ProcessorGraph]

    @abstractmethod
    def read(self, graph: Graph) -> Any:
        """The model, its tensors named as on the wire."""

    @abstractmethod
    def save(self, model: Any, directory: Path) -> tuple[Path, ...]:
        """Write the model's files; ``opens`` takes the first."""

    def opened(self, model: Any) -> RowRunner:
        with tempfile.TemporaryDirectory(prefix="build_engines-") as work:
            return self.opens(self.save(model, Path(work))[0], self.rest_of_int8, cores()).infer

    def build(self, job: Job) -> BuiltEngine:
        arguments, directory = job.arguments, job.directory
        model, precision, int8 = self.read(exported(job)), arguments.precision, None
        if job.calibration:
            model, int8 = quantise(self, model, job.calibration, job.yardstick, arguments.most_kept)
            precision = self.rest_of_int8
        files = self.save(model, directory)
        opened = self.opens(files[0], precision, cores())
        if opened.runs_in != precision:
            opened = self.opens(files[0], opened.runs_in, cores())  # as the server will open it
        sizes = [arguments.rows_per_call] if arguments.rows_per_call else CANDIDATES
        layout = Layout(*job.dimensions.layout)
        largest = max((request.pairs for request in job.yardstick.requests), key=lambda pairs: len(pairs.token_ids))
        timings = measure({size: PairScorer(opened, layout, size) for size in sizes}, largest)
        rows_per_call = choose(timings).rows_per_call
        return BuiltEngine(
            files=files,
            runs_in="int8" if int8 and opened.computes_int8() else opened.runs_in,
            version=self.version,
            run=runner(PairScorer(opened, layout, rows_per_call)),
            judged="the engine",
            rows_per_call=rows_per_call,
            cpu=CpuEngine(opened.runs_in, cores(), cores(), tuple(timings), int8),
        )


def exported(job: Job) -> Graph:
    """The float32 graph, which the first engine of a job exports for all: that takes a good part of a build."""
    path = job.shared / "graph.onnx"
    if path.exists():
        return Graph(path, "fp32", job.dimensions)
    try:
        return export_graph(job.model, job.dimensions, "fp32", path, OPSET, any_length=True)
    except BaseException:
        for part in job.shared.glob(f"{path.name}*"):  # the next engine would take it for the whole
            part.unlink()
        raise


def measure(scorers: dict[int, PairScorer], pairs: FlatPairs) -> list[Timing]:
    """The speed of an engine on this machine by its rows a call. ``pairs`` are real ones; they are repeated where they
    are few.

    Repetitions are interleaved, so that what else the machine does meanwhile falls on all alike.
    """
    row_length = next(iter(scorers.values())).layout.row_length
    filled = {size: _repeated(pairs, max(size, LEAST_ROWS) * row_length) for size in scorers}
    seconds: dict[int, list[float]] = {size: [] for size in scorers}
    for scorer in scorers.values():
        scorer.warm_up()
    for _ in tqdm(range(REPETITIONS), desc="measuring rows per call", leave=False, disable=None):
        for size, scorer in scorers.items():
            run, start = runner(scorer), time.perf_counter()
            run(filled[size])
            seconds[size].append(time.perf_counter() - start)
    return [
        Timing(size, round(len(filled[size].token_ids) / row_length / median(times), 2))
        for size, times in seconds.items()
    ]


def choose(timings: Sequence[Timing]) -> Timing:
    """The fewest rows among those as fast as the fastest, so that a small request waits less for a large one."""
    best = max(timing.rows_per_second for timing in timings)
    fast = [timing for timing in timings if timing.rows_per_second >= ALIKE * best]
    return min(fast, key=lambda timing: timing.rows_per_call)


def _repeated(pairs: FlatPairs, tokens: int) -> FlatPairs:
    """The pairs again and again, as many as make at most ``tokens`` tokens."""
    whole = FlatPairs.join([pairs] * (1 + tokens // len(pairs.token_ids)))
    return whole[: max(1, int(np.searchsorted(np.cumsum(whole.lengths), tokens, "right")))]
