"""The student in PyTorch, on the GPU if there is one.

Compiled, it takes rows in fixed sizes (1, 2, 4 to ``rows_per_call``; B rows), each compiled before the first
request and, on a GPU, held as a CUDA graph: Python then starts one thing a call instead of hundreds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from .graphs import EngineStartError, Graph
from .packing import FloatArray, Rows

MODEL_FILE = "model.pt2"
WARMUP_RUNS = 3  # before a CUDA graph is recorded: compilation and the libraries' own first allocations

Program = Callable[..., Tensor]


class TorchEngine(Graph):
    """An exported program, on the device that is there.

    ``compiled`` says where it is compiled: ``gpu``, ``always`` (on a processor too, where it takes a C++
    compiler and many seconds a size, and saved 6% of MiniLM-L6's time) or ``never``. Compilation that fails is an
    error, not a slower engine. The bench leaves out ``graphs`` to see what they bring.
    """

    def __init__(
        self, program: Path, rows_per_call: int, compiled: str = "gpu", backend: str = "inductor", graphs: bool = True
    ) -> None:
        self.rows_per_call = rows_per_call
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        exported = move_to_device_pass(torch.export.load(program), str(self.device))
        self._widths = [int(example.shape[1]) for example in exported.example_inputs[0]]
        self._program: Program = exported.module()
        self._sizes: list[_FixedSize] = []
        if compiled == "always" or (compiled == "gpu" and self.device.type == "cuda"):
            self._sizes = self._compile(backend, graphs and self.device.type == "cuda")

    @classmethod
    def load(cls, version: Path, manifest: dict[str, Any], instances: int) -> Self:
        """Raises EngineStartError if this machine cannot run the version."""
        built, here = manifest["versions"]["torch"], torch.__version__
        if _release(here) < _release(built):
            raise EngineStartError(f"{version} was built by torch {built}, and torch {here} is here: install {built}")
        torch.set_num_threads(max(1, torch.get_num_threads() // instances))
        return cls(version / MODEL_FILE, manifest["rows_per_call"], manifest["torch_compile"])

    def describe(self) -> str:
        how = f"compiled for {', '.join(str(size.rows) for size in self._sizes)} rows" if self._sizes else "eager"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the processor"
        return f"torch {torch.__version__} on {name}, {how}"

    @torch.inference_mode()
    def infer(self, rows: Rows) -> FloatArray:
        count = len(rows[0])
        for size in self._sizes:
            if count <= size.rows:
                return size.score(rows)
        scores_RS = self._program(*(torch.from_numpy(array).to(self.device) for array in rows))
        scores: FloatArray = scores_RS.cpu().numpy()
        return scores

    @torch.inference_mode()
    def _compile(self, backend: str, graphs: bool) -> list[_FixedSize]:
        # Without fullgraph PyTorch would run parts that it cannot compile as they are, and say nothing.
        program: Program = torch.compile(self._program, fullgraph=True, dynamic=False, backend=backend)
        try:
            return [_FixedSize(program, rows, self._widths, self.device, graphs) for rows in sizes(self.rows_per_call)]
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise EngineStartError(
                f"the engine cannot be compiled here: {reason} (build it with --torch_compile never to run it as it is)"
            ) from error


def sizes(rows_per_call: int) -> list[int]:
    """1, 2, 4, ... and ``rows_per_call``: at most half of the rows that are computed are empty."""
    return [*(2**power for power in range((rows_per_call - 1).bit_length())), rows_per_call]


class _FixedSize:
    """A compiled program for exactly B rows; fewer are scored beside rows of an earlier call."""

    def __init__(self, program: Program, rows: int, widths: list[int], device: torch.device, graph: bool) -> None:
        self.rows = rows
        self._program = program
        # All inputs lie in one piece of memory, so one copy brings them to the device.
        on_gpu = device.type == "cuda"
        self._staged = torch.zeros(rows * sum(widths), dtype=torch.int32, pin_memory=on_gpu)
        self._held = torch.zeros_like(self._staged, device=device) if on_gpu else self._staged
        self._views = [piece.numpy() for piece in _pieces(self._staged, rows, widths)]
        self._inputs = _pieces(self._held, rows, widths)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._scores_BS = self._recorded() if graph else program(*self._inputs)

    def score(self, rows: Rows) -> FloatArray:
        count = len(rows[0])
        for view, array in zip(self._views, rows, strict=True):
            view[:count] = array
        if self._held is not self._staged:
            self._held.copy_(self._staged, non_blocking=True)
        if self._graph is None:
            scores_BS = self._program(*self._inputs)
        else:
            self._graph.replay()
            scores_BS = self._scores_BS
        scores: FloatArray = scores_BS[:count].cpu().numpy().copy()  # the next call writes over what the graph holds
        return scores

    def _recorded(self) -> Tensor:
        """Record the CUDA graph; what it writes its scores to. Written to the documented API, not run yet."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_RUNS):
                self._program(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            return self._program(*self._inputs)


def _pieces(flat: Tensor, rows: int, widths: list[int]) -> list[Tensor]:
    """Views [rows, width] of one piece of memory, one after the other."""
    ends = np.cumsum([rows * width for width in widths]).tolist()
    return [flat[end - rows * width : end].view(rows, width) for end, width in zip(ends, widths, strict=True)]


def _release(version: str) -> tuple[int, ...]:
    """(2, 13) of 2.13.0+cpu: programs of one release load in it and in later ones."""
    return tuple(int(part) for part in version.split(".")[:2])
