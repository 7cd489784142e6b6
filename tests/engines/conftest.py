"""Repositories with versions that several files of tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.exports import exported_once
from tests.support.servers import build


@pytest.fixture(scope="session")
def openvino_versions(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8."""
    path = shutil.copytree(served_repository, tmp_path_factory.mktemp("openvino") / "model_repository")
    return build(served_repository.parent / "bert", path, "int8")


@pytest.fixture(scope="session")
def onnxruntime_versions(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8."""
    path = tmp_path_factory.mktemp("onnxruntime") / "model_repository"
    with exported_once(path.with_name("graph")):
        build(served_checkpoint, path, "fp32", engine="onnxruntime")
        return build(served_checkpoint, path, "int8", engine="onnxruntime")
