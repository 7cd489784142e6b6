"""Repositories with versions that several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.servers import build


@pytest.fixture(scope="session")
def openvino_versions(served_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 in fp32, version 2 in int8."""
    path = tmp_path_factory.mktemp("openvino") / "model_repository"
    return build(served_checkpoint, build(served_checkpoint, path, "fp32"), "int8")
