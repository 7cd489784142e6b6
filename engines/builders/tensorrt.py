"""The TensorRT engine for GPUs, with one code path for ``tensorrt`` (10.12+, 11) and ``tensorrt_rtx``.

Networks are strongly typed: only the graph's types decide the precision.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engines.arguments import BuildArguments
from engines.builders import Builder, capabilities, timing_cache
from engines.builders.stand_in import stand_in
from engines.graph.export import export_graph
from engines.job import Job
from engines.records import OUTPUT, BuiltEngine, Dimensions, EngineError, Graph, Runner, packed
from engines.table import ENGINES, Engine
from model_repository.tokenizer.pair_encoding import INPUTS, FloatArray, Rows

TYPICAL_ROWS = 32  # a request of about a hundred passages; the profile is tuned for it
# tensorrt_rtx comes as two wheels, or as a package that joins them under the shorter name.
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


class TensorRt(Builder):
    """Builds plans with ``tensorrt`` or ``tensorrt_rtx``."""

    def __init__(self, engine: Engine) -> None:
        self._name = engine.name
        library(engine.name)

    def check(self, arguments: BuildArguments) -> None:
        check_capabilities(self._name, arguments.capabilities, arguments.precision)

    def build(self, job: Job) -> BuiltEngine:
        arguments, path = job.arguments, job.directory / "model.onnx"
        if job.calibration:
            try:
                from engines.quantise import fp8
            except ImportError as error:
                raise EngineError(f"--precision fp8 needs {error.name}: pip install onnx") from error
            half = export_graph(job.model, job.dimensions, fp8.BASE, job.directory / "half.onnx", fp8.OPSET)
            graph = fp8.quantise(half, job.calibration.rows, path)
        else:
            graph = export_graph(job.model, job.dimensions, arguments.precision, path)
        timings = Path(arguments.timing_cache) if arguments.timing_cache else None
        return build(graph, self._name, arguments.capabilities, job.directory, timings)


class ParsedNetwork(NamedTuple):
    """A network, and the objects that must live as long as it does."""

    network: Any
    builder: Any
    log: Any
    parser: Any


class MatrixProduct(NamedTuple):
    """A matrix multiplication of a network, and the types of its inputs (``FP8``, ``HALF``, ``BF16``, ``FLOAT``)."""

    name: str
    types: tuple[str, ...]


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
    trt = library(engine)
    parsed = parse(trt, graph.path)
    plans: dict[str, str] = {}
    for capability in capabilities.targets(named):
        path = directory / capabilities.plan_file(capability)
        config = _config(trt, parsed.builder, graph, capability if named else None)
        with _timing(trt, engine, config, capability, timings):
            plan = parsed.builder.build_serialized_network(parsed.network, config)
        if plan is None:
            for_what = f" for compute capability {capability}" if capability else ""
            raise EngineError(f"{engine} cannot build this graph{for_what}: {_joined(parsed.log.errors)}")
        path.write_bytes(plan)
        if capability:
            plans[capability] = path.name
    files = tuple(directory / name for name in plans.values()) or (directory / capabilities.plan_file(None),)
    here = plans.get(capabilities.here() or "")
    if here is not None:
        run, judged = open_runner(trt, directory / here, graph.dimensions), "the engine"
    else:
        run, judged = stand_in(graph)
    return BuiltEngine(files, graph.precision, trt.__version__, run, judged, plans=plans)


def _timing(
    trt: Any, engine: str, config: Any, capability: str | None, path: Path | None
) -> AbstractContextManager[None]:
    """The timing cache around a build. tensorrt_rtx measures nothing: its cache functions do nothing and warn."""
    if engine == "tensorrt_rtx":
        return nullcontext()
    return timing_cache.kept(config, path or timing_cache.default_path(trt, capability))


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


def matrix_products(trt: Any, network: Any) -> list[MatrixProduct]:
    """All matrix multiplications of a parsed network, in its order."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    return [
        MatrixProduct(
            layer.name,
            tuple(_held_in(trt, layer.get_input(index), made_by) for index in range(layer.num_inputs)),
        )
        for layer in layers
        if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.EINSUM)
    ]


def _held_in(trt: Any, tensor: Any, made_by: Mapping[str, Any]) -> str:
    """The type of a tensor, or of its quantised form, in which builders multiply."""
    layer = made_by.get(tensor.name)
    while layer is not None and layer.type == trt.LayerType.SHUFFLE:  # a weight gets axes to match
        layer = made_by.get(layer.get_input(0).name)
    if layer is not None and layer.type == trt.LayerType.DEQUANTIZE:
        tensor = layer.get_input(0)
    name: str = tensor.dtype.name
    return name


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
        config.set_compute_capability(capabilities.member(trt, capability), 0)
    return config


def check_capabilities(engine: str, named: Sequence[str], precision: str) -> None:
    """Raises EngineError for compute capabilities that the engine does not know or that lack units for the precision,
    and for none where there is no GPU to build for."""
    if engine == "tensorrt_rtx":
        for capability in named:
            capabilities.member(library(engine), capability)
        if not named and capabilities.here() is None:
            raise EngineError("no NVIDIA GPU here to build for: name some, such as --compute_capability 8.6,8.9")
    capabilities.check_units(named, precision)


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
