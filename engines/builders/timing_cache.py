"""What TensorRT measured of its kernels, kept from one build to the next, which then takes a fraction of the time.

A cache is of one TensorRT and one kind of GPU: the default's name holds both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.records import EngineError


def default_path(trt: Any, capability: str | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "disranker" / f"{trt.__name__}-{trt.__version__}-{capability or 'unknown'}.timing"


@contextmanager
def kept(config: Any, path: Path) -> Iterator[None]:
    """The cache of ``path`` in a builder's configuration; after the build that the block makes, written back.

    Raises EngineError for a file that is not a cache of this TensorRT and GPU, or that cannot be written.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(f"--timing_cache {path}: cannot be read: {error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(f"--timing_cache {path}: not of this TensorRT and this kind of GPU; name another file")
    yield
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EngineError(f"--timing_cache {path}: cannot be written: {error}") from error
