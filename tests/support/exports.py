"""Builds that share one exported graph."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.builders import processors
from engines.graph.export import export_graph
from engines.records import Graph


@contextmanager
def exported_once(directory: Path) -> Iterator[None]:
    """Builds for processors in the block take the first one's graph: to export it is most of their time."""
    exported: list[Graph] = []

    def export(*arguments: Any, **settings: Any) -> Graph:
        if not exported:
            graph = export_graph(*arguments, **settings)
            shutil.copytree(graph.path.parent, directory)
            exported.append(graph._replace(path=directory / graph.path.name))
        return exported[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processors, "export_graph", export)
        yield
