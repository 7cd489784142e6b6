"""The installed nvidia-pytriton wheel, out of which Triton is started."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_LIBRARY = f"libpython{VERSION}.so.1.0"


class EmbeddedTritonError(Exception):
    """The server cannot start; the message says how to mend it."""


@dataclass(frozen=True)
class Wheel:
    """The paths of the installed nvidia-pytriton's parts, and of the Python library that its stub loads."""

    server: Path
    stub: Path
    backend: Path
    libraries: Path
    python_library: Path


def find_wheel() -> Wheel:
    """Raises EmbeddedTritonError for a Python or an environment that the server cannot run in."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedTritonError("the embedded Triton is not installed: pip install 'disranker[server]'")
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    stub = triton / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise EmbeddedTritonError(f"nvidia-pytriton has no Python backend for Python {VERSION}: use Python 3.11")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise EmbeddedTritonError(f"Triton's Python backend garbles text under numpy {numpy}: pip install 'numpy<2'")
    return Wheel(
        triton / "bin/tritonserver",
        stub,
        triton / "backends/python",
        package.parent / "nvidia_pytriton.libs",
        _python_library(),
    )


def _python_library() -> Path:
    folders = [Path(sys.base_prefix) / "lib", Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    folders += [folder / (sysconfig.get_config_var("MULTIARCH") or "") for folder in folders]
    for folder in folders:
        if (folder / PYTHON_LIBRARY).is_file():
            return folder / PYTHON_LIBRARY
    raise EmbeddedTritonError(
        f"this Python has no {PYTHON_LIBRARY}, which Triton's Python backend loads: install it "
        f"(Debian: apt-get install libpython{VERSION}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def backend_directory(wheel: Wheel) -> Path:
    """Links to the backend and its stub side by side, as Triton expects them; the wheel has a stub per Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    installation = hashlib.sha256(os.fsencode(wheel.stub)).hexdigest()[:12]
    folder = cache / "disranker" / f"triton-{installation}" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for target in (*wheel.backend.glob("*.*"), wheel.stub):
        if not (folder / target.name).exists():
            partial = folder / f".{target.name}.{os.getpid()}"
            partial.symlink_to(target)
            partial.replace(folder / target.name)  # another server may be starting
    return folder.parent
