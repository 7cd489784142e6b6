"""Repositories with versions that several files of tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.exports import exported_once
from tests.support.servers import build

if TYPE_CHECKING:
    from tests.support.fixtures import MadeOnce  # pytest itself is the first to import that


@pytest.fixture(scope="session")
def openvino_versions(served_folder: Path, made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8; for tests of this process to change."""

    def make(folder: Path) -> None:
        repository = Path(shutil.copytree(served_folder / "model_repository", folder / "model_repository"))
        with exported_once(served_folder / "graph"):
            build(served_folder / "bert", repository, "int8")

    made = made_once("openvino_versions", make)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("openvino") / "made")) / "model_repository"


@pytest.fixture(scope="session")
def onnxruntime_versions(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8."""
    path = tmp_path_factory.mktemp("onnxruntime") / "model_repository"
    with exported_once(served_folder / "graph"):
        build(served_folder / "bert", path, "fp32", engine="onnxruntime")
        return build(served_folder / "bert", path, "int8", engine="onnxruntime")
