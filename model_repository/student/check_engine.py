"""Check that the engines that Triton serves can be opened here, one line each; nothing needs to be installed.

    python3 model_repository/student/check_engine.py && tritonserver --model-repository model_repository

Triton itself answers with a stack of C++ messages, or starts and fails later. Exit code 2 if one cannot be opened.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from digests import damage
from served import served_versions


class UnusableError(Exception):
    """The engine cannot be opened here; the message says how to mend it."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check that the served engines can be opened on this machine.")
    parser.add_argument("--student", type=Path, default=Path(__file__).parent, help="the model's directory")
    parser.add_argument("--library", help="TensorRT's library, if not libnvinfer.so where the loader finds it")
    arguments = parser.parse_args(argv)
    try:
        print(*check(arguments.student, arguments.library), sep="\n")
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check(student: Path, library: str | None = None) -> list[str]:
    """A line for each version that Triton serves. Raises UnusableError."""
    versions = served_versions(student)
    if not versions:
        raise UnusableError(f"{student} has no version: build one with build_engines.py")
    return [_check_version(student / str(version), library) for version in versions]


def _check_version(directory: Path, library: str | None) -> str:
    if not (directory / "manifest.json").is_file():
        raise UnusableError(
            f"Triton is told to serve {directory}, which has no manifest.json: choose another version with "
            "python -m engines.versions use"
        )
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    if wrong := damage(directory, manifest.get("files", {})):
        raise UnusableError(wrong)
    engine, built = manifest["engine"], manifest["versions"][manifest["engine"]]
    if engine == "tensorrt_rtx":
        raise UnusableError(f"{directory} is for tensorrt_rtx, which Triton does not open: build --engine tensorrt")
    if engine == "tensorrt":
        found = tensorrt_version(library or f"libnvinfer.so.{built.split('.')[0]}")
        _check_gpus(directory, manifest)
        fits = _numbers(found, 3) == _numbers(built, 3)  # only the release that made a plan opens it
    else:
        found = _package_version(engine)
        fits = engine != "torch" or _numbers(found, 2) >= _numbers(built, 2)
    if not fits:
        raise UnusableError(
            f"{directory} was built with {engine} {built} and {engine} {found} is here: build it in the container "
            "that serves it, or serve it from the one that it was built in"
        )
    return f"{directory}: {engine} {built}, here {found}"


def _numbers(release: str, count: int) -> list[int]:
    return [int(part) for part in release.split(".")[:count]]


def tensorrt_version(library: str) -> str:
    """Major, minor and patch of a TensorRT library. Raises UnusableError for one that is not there."""
    try:
        loaded: Any = ctypes.CDLL(library)
        number = int(loaded.getInferLibVersion())
    except (OSError, AttributeError) as error:
        raise UnusableError(
            f"TensorRT's {library} is not here ({error}): serve from a container that has it"
        ) from error
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _check_gpus(directory: Path, manifest: dict[str, Any]) -> None:
    plans = manifest.get("plans") or {}
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UnusableError(f"no NVIDIA GPU answers here ({error}): start the container with --gpus all") from error
    lacking = sorted(set(listed.split()) - set(plans))
    if plans and lacking:
        raise UnusableError(
            f"{directory} has plans for compute capability {', '.join(plans)}, and a GPU here has {lacking[0]}: build "
            "one on such a GPU, with --add_to_newest"
        )


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise UnusableError(f"the engine needs Python's {name}, which is not here: pip install {name}") from error


if __name__ == "__main__":
    sys.exit(main())
