"""Engines for processors: the float32 graph, quantised for int8, and tuned for this machine's cores."""

from __future__ import annotations

from engines.builders import Builder
from engines.builders.tuning import CANDIDATES, choose, measure
from engines.graph.export import export_graph
from engines.job import Job
from engines.library import Library, runner
from engines.quantise.int8 import quantise
from engines.records import BuiltEngine, CpuEngine
from model_repository.student.runtime.graphs import cores
from model_repository.student.runtime.packing import Layout
from model_repository.student.runtime.pair_scorer import PairScorer


class ProcessorBuilder(Library, Builder):
    """Builds with one library.

    int8 is in the graph. All other products are computed in the precision that was asked for, or, without units for
    it, in the one that the library takes instead.
    """

    def build(self, job: Job) -> BuiltEngine:
        arguments, directory = job.arguments, job.directory
        exported = directory / "graph.onnx"
        graph = export_graph(job.model, job.dimensions, "fp32", exported, self.opset, any_length=True)
        model, precision, int8 = self.read(graph), arguments.precision, None
        if job.calibration:
            model, int8 = quantise(self, model, job.calibration, job.yardstick, arguments.most_kept)
            precision = self.rest_of_int8
        files = self.save(model, directory)
        opened = self.opens(files[0], precision, cores())
        if opened.runs_in != precision:
            opened = self.opens(files[0], opened.runs_in, cores())  # as the server will open it
        candidates = [arguments.rows_per_call] if arguments.rows_per_call else CANDIDATES
        layout = Layout(*job.dimensions.layout)
        largest = max((request.pairs for request in job.yardstick.requests), key=lambda pairs: len(pairs.token_ids))
        timings = measure(opened, layout, largest, candidates)
        rows_per_call = choose(timings).rows_per_call
        return BuiltEngine(
            files=files,
            runs_in="int8" if int8 and self.computes_int8(opened) else opened.runs_in,
            version=self.version,
            run=runner(PairScorer(opened, layout, rows_per_call)),
            judged="the engine",
            rows_per_call=rows_per_call,
            cpu=CpuEngine(opened.runs_in, cores(), cores(), tuple(timings), int8),
        )
