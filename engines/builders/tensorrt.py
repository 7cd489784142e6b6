"""The TensorRT engine for GPUs, with one code path for ``tensorrt`` (10.12+, 11) and ``tensorrt_rtx``.

Networks are strongly typed: only the graph's types decide the precision.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from client.files import appears_whole
from engines.builders import Builder
from engines.graph.export import export_graph, onnx_session
from engines.job import BuildArguments, Job
from engines.quantise import fp8
from engines.records import OUTPUT, BuiltEngine, Dimensions, EngineError, Graph, RowRunner, Runner, packed
from engines.table import ENGINES
from model_repository.student.runtime.graphs import cores
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray, Rows

TYPICAL_ROWS = 32  # a request of about a hundred passages; the profile is tuned for it
# tensorrt_rtx comes as two wheels, or as a package that joins them under the shorter name.
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


STAND_IN_ROWS = 8  # that the processor takes at a time
NEEDED = {"bf16": "8.0", "fp8": "8.9"}  # the compute capability from which on a GPU has units for a precision


class TensorRt(Builder):
    """Builds plans with ``tensorrt`` or ``tensorrt_rtx``."""

    def check(self, arguments: BuildArguments) -> None:
        check_capabilities(arguments.engine, arguments.capabilities, arguments.precision)

    def build(self, job: Job) -> BuiltEngine:
        arguments, path = job.arguments, job.directory / "model.onnx"
        if job.calibration:
            half = export_graph(job.model, job.dimensions, fp8.BASE, job.directory / "half.onnx", fp8.OPSET)
            graph = fp8.quantise(half, job.calibration.rows, path)
        else:
            graph = export_graph(job.model, job.dimensions, arguments.precision, path)
        timings = Path(arguments.timing_cache) if arguments.timing_cache else None
        return build(graph, arguments.engine, arguments.capabilities, job.directory, timings)


class ParsedNetwork(NamedTuple):
    """A network, and the objects that must live as long as it does."""

    network: Any
    builder: Any
    log: Any
    parser: Any


def library(engine: str) -> Any:
    """The module of an engine's name. Raises EngineError where it is not installed."""
    for name in MODULES[engine]:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if error.name != name:  # it is there, and lacks something of its own
                raise EngineError(f"the engine {engine} is installed and cannot be loaded: {error}") from error
    raise EngineError(f"the engine {engine} is not installed: pip install {ENGINES[engine].install}")


def build(graph: Graph, engine: str, named: Sequence[str], directory: Path, timings: Path | None = None) -> BuiltEngine:
    """Write a plan for the GPU at hand or, with tensorrt_rtx, one for each of those ``named``, such as 8.9.

    Each kind of GPU has a plan of its own, and a server loads only the one that it needs. Raises EngineError with all
    messages of the parser or the builder.
    """
    trt, here = library(engine), _capability_here()
    parsed = parse(trt, graph.path)
    files: dict[str | None, Path] = {}
    for capability in (*named,) or (here,):
        config = _config(trt, parsed.builder, graph, capability if named else None)
        with _timed(config, timings or _default_timings(trt, capability)) if engine == "tensorrt" else nullcontext():
            plan = parsed.builder.build_serialized_network(parsed.network, config)
        if plan is None:
            for_what = f" for compute capability {capability}" if capability else ""
            raise EngineError(f"{engine} cannot build this graph{for_what}: {_joined(parsed.log.errors)}")
        kind = f".sm{capability.replace('.', '')}" if capability else ""
        files[capability] = directory / f"model{kind}.plan"
        files[capability].write_bytes(plan)
    if here and here in files:
        run, judged = open_runner(trt, files[here], graph.dimensions), "the engine"
    else:
        run, judged = stand_in(graph)
    plans = {capability: path.name for capability, path in files.items() if capability}
    return BuiltEngine((*files.values(),), graph.precision, trt.__version__, run, judged, plans=plans)


def parse(trt: Any, path: Path) -> ParsedNetwork:
    """The strongly typed network of an ONNX file. Raises EngineError that lists all of the parser's errors."""
    log = _log(trt)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EngineError(f"{trt.__name__} cannot build here, is there an NVIDIA GPU? {_joined(log.errors)}") from error
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # newer ones know no other networks
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        errors = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in found]
        raise EngineError(f"{trt.__name__} cannot read the graph: {_joined(errors)}")
    return ParsedNetwork(network, builder, log, parser)


def open_runner(trt: Any, path: Path, dimensions: Dimensions) -> Runner:
    """The engine on the GPU that PyTorch sees. It follows the documented API and has not been run yet.

    Raises EngineError for a plan that this GPU and driver cannot open.
    """
    engine = trt.Runtime(_log(trt)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{trt.__name__} cannot open the engine that it built: {_joined(_log(trt).errors)}")
    context = engine.create_execution_context()

    def run(rows: Rows) -> FloatArray:
        inputs = {name: torch.from_numpy(array).cuda() for name, array in zip(INPUTS, rows, strict=True)}
        scores_RS = torch.empty(inputs[INPUTS[-1]].shape, dtype=torch.float32, device="cuda")
        for name, tensor in inputs.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        context.set_tensor_address(OUTPUT, scores_RS.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"{trt.__name__} cannot run the engine: {_joined(_log(trt).errors)}")
        stream.synchronize()
        scores: FloatArray = scores_RS.cpu().numpy()
        return scores

    return packed(run, dimensions.layout, dimensions.max_rows)


def stand_in(graph: Graph) -> tuple[Runner, str]:
    """The graph on this processor, for the gate where the engine itself cannot be opened, and its name in words.

    ONNX Runtime rounds to the graph's types after each operator, so float16 overflows here as it would
    on a GPU. It has no kernels for bfloat16. That type cannot overflow, so OpenVINO computes in float32
    from the rounded weights.
    """
    run: RowRunner
    if graph.precision == "bf16":
        run, name = ENGINES["openvino"].serving_class()(graph.path, "fp32", cores()).infer, "OpenVINO in float32"
    else:
        # Optimised, an fp8 graph would have its roundings moved past operators that do not take fp8.
        session, name = onnx_session(graph.path, optimised=graph.precision != "fp8"), "ONNX Runtime"

        def run(rows: Rows) -> FloatArray:
            return np.asarray(session.run([OUTPUT], dict(zip(INPUTS, rows, strict=True)))[0])

    judged = f"the engine's graph in {name}; the engine itself was not run, no GPU here opens it"
    return packed(run, graph.dimensions.layout, STAND_IN_ROWS), judged


def _config(trt: Any, builder: Any, graph: Graph, capability: str | None) -> Any:
    """The configuration for one compute capability, or for the GPU at hand."""
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    profile = builder.create_optimization_profile()
    most = graph.dimensions.max_rows
    for name in INPUTS:
        width = graph.dimensions.width(name)
        profile.set_shape(name, *((rows, width) for rows in (1, min(TYPICAL_ROWS, most), most)))
    config.add_optimization_profile(profile)
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_named(trt, capability), 0)
    return config


def check_capabilities(engine: str, named: Sequence[str], precision: str) -> None:
    """Raises EngineError for compute capabilities that the engine does not know or that lack units for the precision,
    for none where there is no GPU to build for, and where the engine is not installed."""
    trt, here = library(engine), _capability_here()
    if engine == "tensorrt_rtx":
        for capability in named:
            _named(trt, capability)
        if not named and here is None:
            raise EngineError("no NVIDIA GPU here to build for: name some, such as --compute_capability 8.6,8.9")
    needed = NEEDED.get(precision, "0")
    for capability in named or [here or needed]:
        if _numbers(capability) < _numbers(needed):
            raise EngineError(
                f"--precision {precision} needs compute capability {needed} or newer; {capability} has no units for it"
            )


def _capability_here() -> str | None:
    """The compute capability of the GPU that PyTorch sees, as NVIDIA writes it (8.9)."""
    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def _named(trt: Any, capability: str) -> Any:
    """The library's own name of a compute capability. Raises EngineError that lists the known ones."""
    members = trt.ComputeCapability.__members__
    found = members.get("SM" + capability.replace(".", ""))
    if found is None:
        known = sorted(int(name[2:]) for name in members if name.startswith("SM"))
        listed = ", ".join(f"{number // 10}.{number % 10}" for number in known)
        raise EngineError(f"compute capability {capability!r} is not one that {trt.__name__} knows: {listed}")
    return found


def _numbers(capability: str) -> list[int]:
    return [int(part) for part in capability.split(".")]


def _default_timings(trt: Any, capability: str | None) -> Path:
    """A timing cache holds for one TensorRT and one kind of GPU, so its name has both."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "disranker" / f"{trt.__name__}-{trt.__version__}-{capability or 'unknown'}.timing"


@contextmanager
def _timed(config: Any, path: Path) -> Iterator[None]:
    """Give a builder's configuration the timing cache of ``path``; when the block has built, write the cache back.

    It holds TensorRT's timings of its kernels, with which the next build takes a fraction of the time. Raises
    EngineError for a file that is not a cache of this TensorRT and GPU.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(f"--timing_cache {path}: cannot be read: {error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"--timing_cache {path}: not of this TensorRT and this kind of GPU; name another file")
    yield
    with appears_whole(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))


@functools.cache  # the library keeps the first logger of a process, whatever later ones it is given
def _log(trt: Any) -> Any:
    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the message of an EngineError."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return ErrorLog()


def _joined(errors: Sequence[str]) -> str:
    return " | ".join(" ".join(error.split()) for error in errors) or "it gives no reason"
