"""The check before a server starts, run as users run it: beside the engine, with nothing installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ROOT


@pytest.fixture
def student(tmp_path: Path) -> Path:
    directory = tmp_path / "student"
    directory.mkdir()
    for name in ("check_engine.py", "digests.py", "served.py"):
        shutil.copy2(ROOT / "model_repository/student" / name, directory)
    return directory


@pytest.fixture(scope="module")
def tensorrt_library() -> str:
    """That of tensorrt_rtx, which says its version by the same function."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.submodule_search_locations
    return str(next(Path(spec.submodule_search_locations[0]).glob("libtensorrt_rtx.so*")))


def built(student: Path, number: int, engine: str, version: str, **more: Any) -> None:
    (student / str(number)).mkdir()
    manifest = {"engine": engine, "versions": {engine: version}, **more}
    (student / str(number) / "manifest.json").write_text(json.dumps(manifest))


def run(student: Path, *flags: str, smi: str | None = None) -> tuple[int, str]:
    """Exit code and the one line; ``smi`` is what the machine's nvidia-smi says of its GPUs."""
    folder = student.parent / "bin"
    folder.mkdir(exist_ok=True)
    if smi is not None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{smi}'\n")
        (folder / "nvidia-smi").chmod(0o755)
    command = [sys.executable, str(student / "check_engine.py"), *flags]
    done = subprocess.run(command, env={**os.environ, "PATH": f"{folder}:/bin"}, capture_output=True, text=True)
    (line,) = (done.stdout + done.stderr).splitlines()
    return done.returncode, line


def test_the_release_that_built_it_opens_it(student: Path, tensorrt_library: str) -> None:
    here = importlib.metadata.version("tensorrt-rtx-cu13-libs")
    built(student, 2, "tensorrt", here, plans={"8.6": "model.sm86.plan", "8.9": "model.sm89.plan"})
    code, line = run(student, "--library", tensorrt_library, smi="8.9\\n8.9\\n")
    assert (code, line) == (0, f"{student / '2'}: tensorrt {here}, here {'.'.join(here.split('.')[:3])}")

    code, line = run(student, "--library", tensorrt_library, smi="8.9\\n9.0\\n")
    assert code == 2 and "has plans for compute capability 8.6, 8.9, and a GPU here has 9.0" in line

    built(student, 10, "tensorrt", "10.12.0.36", plans={})  # newer than 2, and not by its name
    code, line = run(student, "--library", tensorrt_library, smi="8.9\\n")
    assert code == 2 and "10 was built with tensorrt 10.12.0.36 and tensorrt" in line


def test_what_is_missing_is_named(student: Path, tensorrt_library: str) -> None:
    assert "has no version: build one" in run(student)[1]
    built(student, 1, "tensorrt", "99.1.0", plans={})
    code, line = run(student, smi="8.9")
    assert code == 2 and "TensorRT's libnvinfer.so.99 is not here" in line
    built(student, 2, "tensorrt", importlib.metadata.version("tensorrt-rtx-cu13-libs"), plans={})
    code, line = run(student, "--library", tensorrt_library, smi="No devices'; exit 9; '")
    assert code == 2 and "no NVIDIA GPU answers here" in line and "--gpus all" in line


@pytest.mark.parametrize(("version", "expected"), [(torch.__version__, 0), ("2.3.0", 0), ("2.100.0", 2)])
def test_torch_may_be_newer(student: Path, version: str, expected: int) -> None:
    built(student, 1, "torch", version)
    assert run(student)[0] == expected


def test_files_are_those_that_were_built(student: Path) -> None:
    digest = hashlib.sha256(b"engine").hexdigest()
    built(student, 1, "torch", torch.__version__, files={"model.pt2": digest})
    for content, code, message in ((None, 2, "is missing"), (b"other", 2, "is not what was built"), (b"engine", 0, "")):
        if content is not None:
            (student / "1/model.pt2").write_bytes(content)
        found, line = run(student)
        assert found == code and message in line


def test_the_version_that_is_served_is_checked_and_not_the_newest(student: Path) -> None:
    built(student, 1, "torch", torch.__version__)
    built(student, 2, "tensorrt_rtx", "1.7.1", plans={})
    built(student, 3, "torch", torch.__version__)
    config = student / "config.pbtxt"
    config.write_text('name: "student"\nversion_policy { specific { versions: 1 } }\n')
    assert run(student) == (0, f"{student / '1'}: torch {torch.__version__}, here {torch.__version__}")
    config.write_text('name: "student"\nversion_policy { specific { versions: [ 1, 2 ] } }\n')
    code, line = run(student)
    assert code == 2 and f"{student / '2'} is for tensorrt_rtx" in line, "one that is served beside it must open too"
    config.write_text('name: "student"\nversion_policy { specific { versions: 4 } }\n')
    code, line = run(student)
    assert code == 2 and f"{student / '4'}, which has no manifest.json: choose another version" in line
