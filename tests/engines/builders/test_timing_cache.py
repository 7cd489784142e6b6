"""The timing cache's file. tensorrt_rtx has the functions that tensorrt has, and keeps nothing in its caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.builders import tensorrt
from engines.builders.timing_cache import default_path, kept
from engines.records import EngineError

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


@pytest.fixture
def config() -> Any:
    trt = tensorrt.library("tensorrt_rtx")
    return trt.Builder(tensorrt._log(trt)).create_builder_config()


def test_the_cache_is_written_whole_and_read_again(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpu.timing"
    with kept(config, path):
        assert not path.exists()
    content = path.read_bytes()
    assert content
    with kept(config, path):
        assert bytes(config.get_timing_cache().serialize()) == content
    assert [left.name for left in path.parent.iterdir()] == ["gpu.timing"]


def test_a_build_that_fails_leaves_the_cache_as_it_was(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "gpu.timing"
    with pytest.raises(EngineError, match="no build"), kept(config, path):
        raise EngineError("no build")
    assert not path.exists()


def test_a_directory_is_no_cache(config: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"), kept(config, tmp_path):
        pass


def test_the_default_is_of_one_version_and_one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trt = tensorrt.library("tensorrt_rtx")
    path = default_path(trt, "8.6")
    assert path.parent == tmp_path / "disranker"
    assert trt.__version__ in path.name and path.name.endswith("-8.6.timing")
