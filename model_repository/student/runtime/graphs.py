"""Graphs that score packed rows, opened by one library or another."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from .packing import FloatArray, Rows

INT8_UNITS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # as Linux names them


class EngineStartError(RuntimeError):
    """The engine cannot run here; the message says how to mend it."""


class Graph(ABC):
    """An opened graph, for one thread at a time."""

    any_length = False  # rows may be shorter than the build's, with another number of slots
    run_cost = math.inf  # in tokens: the pairs of a call go in several runs where each saves more than that
    length_step = 1  # lengths are then multiples of it: each new one costs the library time
    notes: tuple[str, ...] = ()  # how this machine differs from the one that the graph was built on

    @classmethod
    @abstractmethod
    def load(cls, version: Path, manifest: dict[str, Any], instances: int) -> Self:
        """The graph of a version, with this process's share of the cores."""

    @abstractmethod
    def infer(self, rows: Rows) -> FloatArray:
        """``scores[R, S]`` of at most the manifest's ``rows_per_call`` full rows, or as many tokens in shorter ones."""

    @abstractmethod
    def describe(self) -> str:
        """A line for the server's log."""


class ProcessorGraph(Graph):
    """A graph on a processor's cores.

    file: its name in a version.
    runs_in: what the library computes products in that the graph does not hold in int8.
    """

    file: ClassVar[str]
    runs_in: str

    @abstractmethod
    def __init__(self, model: Path, precision: str, threads: int) -> None:
        """``precision`` is asked for in the products that the graph does not hold in int8. Without units for it the
        library takes another, ``runs_in``."""

    def computes_int8(self) -> bool:
        """Whether this processor computes in 8 bits what the graph holds in int8, as the library reports it."""
        return True  # unless the library has another way

    @classmethod
    def load(cls, version: Path, manifest: dict[str, Any], instances: int) -> Self:
        """Raises EngineStartError where this processor would cut off sums of int8 products."""
        tuned, here = manifest["cpu"], cores()
        if (tuned.get("int8") or {}).get("full_range") and not has_int8_units():
            raise EngineStartError(
                f"{version} was built on a processor with units for int8 (VNNI, AMX), and without them its scores "
                "would be wrong: build the engine on a machine like this one"
            )
        graph = cls(version / cls.file, tuned["rest_in"], max(1, min(tuned["threads"], here) // instances))
        graph.notes = tuple(_notes(tuned, graph.runs_in, here))
        return graph


def has_int8_units() -> bool:
    """Whether the processor adds up int8 products in 32 bits; others do it in 16, and cut large sums off silently."""
    return not INT8_UNITS.isdisjoint(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _notes(tuned: dict[str, Any], runs_in: str, available: int) -> list[str]:
    notes = []
    if tuned["rest_in"] != runs_in:
        notes.append(
            f"built to run in {tuned['rest_in']}, and this processor runs it in {runs_in}: scores may differ from "
            "those that the gate saw, and the speed too; build the engine on a machine like this one"
        )
    if tuned["cores"] != available:
        notes.append(
            f"tuned for {tuned['cores']} cores, and here are {available}: build the engine on a machine like this one"
        )
    return notes
