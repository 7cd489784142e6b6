"""TensorRT's timings of its kernels: a build that finds an earlier one's takes a fraction of the time.

A cache holds for one TensorRT and one kind of GPU. The default's name holds both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.files import appears_whole
from engines.records import EngineError


def default_path(trt: Any, capability: str | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "disranker" / f"{trt.__name__}-{trt.__version__}-{capability or 'unknown'}.timing"


@contextmanager
def kept(config: Any, path: Path) -> Iterator[None]:
    """Give a builder's configuration the cache of ``path``; when the block has built, write the cache back.

    Raises EngineError for a file that is not a cache of this TensorRT and GPU.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(f"--timing_cache {path}: cannot be read: {error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"--timing_cache {path}: not of this TensorRT and this kind of GPU; name another file")
    yield
    with appears_whole(path) as partial:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
