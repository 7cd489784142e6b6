"""Repositories with versions that several files of tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.builders import processors
from engines.graph.export import export_graph
from engines.records import Graph
from tests.support.servers import build


@pytest.fixture(scope="session")
def openvino_versions(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8."""
    path = shutil.copytree(served_repository, tmp_path_factory.mktemp("openvino") / "model_repository")
    return build(served_repository.parent / "bert", path, "int8")


@pytest.fixture(scope="session")
def onnxruntime_versions(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8 of the same graph."""
    path = tmp_path_factory.mktemp("onnxruntime") / "model_repository"
    exported: list[Graph] = []

    def export_once(*arguments: Any, **settings: Any) -> Graph:
        if not exported:  # it takes most of the time of a build
            graph = export_graph(*arguments, **settings)
            exported.append(
                graph._replace(path=shutil.copytree(graph.path.parent, path.parent / "graph") / graph.path.name)
            )
        return exported[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processors, "export_graph", export_once)
        build(served_checkpoint, path, "fp32", engine="onnxruntime")
        return build(served_checkpoint, path, "int8", engine="onnxruntime")
