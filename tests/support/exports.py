"""Builds that share one exported graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.builders import processors, tensorrt
from engines.graph.export import export_graph
from engines.records import Dimensions, Graph


@contextmanager
def exported_once(directory: Path) -> Iterator[None]:
    """Builds in the block take the graph in the directory, which the first of them writes: to export it is most of
    their time. All of them must be of one checkpoint, for processors or of one precision for GPUs."""

    def export(model: Any, dimensions: Dimensions, precision: str, path: Path, *more: Any, **settings: Any) -> Graph:
        graph = Graph(directory / path.name, precision, dimensions)
        if not directory.exists():
            directory.mkdir()
            export_graph(model, dimensions, precision, graph.path, *more, **settings)
        return graph

    with pytest.MonkeyPatch.context() as patch:
        for module in (processors, tensorrt):
            patch.setattr(module, "export_graph", export)
        yield
