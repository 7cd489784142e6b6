"""The client as a distribution of its own, and that its sources are of every Python that it claims."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.fixtures import MadeOnce

# Imports all that the client needs no framework for. Not every Python has numpy and tritonclient: stand-ins will do to
# see whether the sources are of its language and library.
IMPORT_ALL = """
import importlib, importlib.abc, importlib.machinery, pkgutil, sys, types

class StandIn(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__class_getitem__": classmethod(lambda cls, key: cls)})

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "tritonclient"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Finder())
import disranker_client
modules = [module.name for module in pkgutil.iter_modules(disranker_client.__path__, "disranker_client.")]
assert len(modules) > 20
for name in modules:
    importlib.import_module(name)
"""
COMMAND = """
import sys
from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="disranker-rank")
sys.exit(command.load()())
"""


def pythons() -> list[str]:
    """Every Python from 3.10 on: of the path and of pyenv."""
    names = [f"python3.{minor}" for minor in range(10, 15)]
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [next(map(str, versions.glob(f"*/bin/{name}")), None) or shutil.which(name) for name in names]
    return [python for python in found if python]


@pytest.fixture(scope="module")
def installed(made_once: MadeOnce) -> Path:
    """A folder with what the wheel installs; it is built of a copy, as it is of a source distribution."""

    def make(folder: Path) -> None:
        ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT / "packaging/client", folder / "source", ignore=ignored)
        build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(folder / "source"), "-o", str(folder)]
        subprocess.run(build, check=True, capture_output=True, timeout=300)
        (wheel,) = folder.glob("disranker_client-*-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder / "site")

    return made_once("client-wheel", make) / "site"


def test_the_wheel_imports_itself_and_has_its_commands(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    sources = [path.read_text(encoding="utf-8") for path in (installed / "disranker_client").rglob("*.py")]
    assert not any(re.search(r"^\s*(from|import) client\b", source, flags=re.MULTILINE) for source in sources)
    assert any("from disranker_client.gateway.app import" in source for source in sources)
    assert (installed / "disranker_client/py.typed").is_file()
    assert (installed / "disranker_client/gateway/page/index.html").is_file()
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, "--query", "river", "none.jsonl"],
        env=environment, cwd=installed, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (2, "error: none.jsonl: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).name)
def test_every_python_takes_the_sources(installed: Path, python: str) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [python, "-W", "error", "-c", IMPORT_ALL],
        env=environment, cwd=installed, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
