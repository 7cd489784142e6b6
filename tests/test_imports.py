"""Who may import whom: the architecture, held by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

ENCODING = "model_repository.tokenizer.pair_encoding"
STUDENT = "model_repository.student"

# What each top folder may import of the others; a module that Triton loads imports nothing of ours.
FOLDERS: dict[str, set[str]] = {
    "client": set(),
    "trainer": {"client", ENCODING},
    "engines": {"client", "trainer", ENCODING, STUDENT, "bench.children"},
    "build_engines": {"engines", "client", "trainer", ENCODING, STUDENT},
    "loadtest": {"client"},
    "bench": {"client", "loadtest", "engines", "trainer", ENCODING, STUDENT, "build_engines"},
    "embedded_triton": {f"{STUDENT}.served", "client"},
}
# Inside a folder, from the top floor to the ground: a room imports from the floors below it only.
COMMANDS = "prepare queries init pretrain rank_sft score distill merge evaluate rerank card plan"
FLOORS = {
    "trainer": (
        f"{COMMANDS} > command > preparation > training collection > scoring measures > checkpoints > data packed "
        "> cluster > storage > stores > addresses"
    ),
    "engines": (
        "serve > published > versions store build > repository > auto > builders > job > quantise > "
        "graph parity reference > table > records"
    ),
}
OURS = {*FOLDERS, "model_repository", "examples", "tests"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


@cache
def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it; a name out of a package counts as a module of it."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            inside = {alias.name for alias in node.names if _source(f"{module}.{alias.name}").exists()}
            names |= {f"{module}.{name}" for name in inside} or {module}
    return {name for name in names if name.partition(".")[0] in OURS}


def _source(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (*ROOT.glob(f"{folder}.py"), *(ROOT / folder).rglob("*.py")))


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=_named)
def test_a_file_imports_only_the_folders_that_the_design_allows(path: Path) -> None:
    folder = module_of(path).partition(".")[0]
    allowed = {folder, *FOLDERS[folder]}
    assert [name for name in imported(path) if not any(_is_in(name, place) for place in allowed)] == []


@pytest.mark.parametrize(
    "path",
    [path for path in sources(*FLOORS) if path.parent != ROOT / path.parent.name or path.stem != "__init__"],
    ids=_named,
)
def test_no_import_runs_back_up(path: Path) -> None:
    folder, room, *_ = module_of(path).split(".")
    own = _floor(folder, room)
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith(f"{folder}.")} - {room}
    assert [other for other in rooms if _floor(folder, other) <= own] == []


def _floor(folder: str, room: str) -> int:
    """Counted from the top."""
    return next(number for number, floor in enumerate(FLOORS[folder].split(" > ")) if room in floor.split())


def third_party(path: Path) -> set[str]:
    modules = {node.module for node in nodes(path) if isinstance(node, ast.ImportFrom) and not node.level}
    modules |= {alias.name for node in nodes(path) if isinstance(node, ast.Import) for alias in node.names}
    return {str(name).partition(".")[0] for name in modules} - set(sys.stdlib_module_names)


# All that the import of a module needs installed: a module that Triton loads names none of ours, but by its own folder.
NEEDED = {
    ENCODING: {"numpy", "tokenizers"},
    f"{STUDENT}.runtime.scheduler": {"numpy"},
    f"{STUDENT}.runtime.packing": {"numpy"},
    f"{STUDENT}.served": set(),
    "model_repository.tokenizer.token_cache": set(),
    "client": {"client", "tritonclient", "numpy"},
    # tqdm shows a bar where there is one, and pyarrow unpacks .zst files.
    "client.rank": {"client", "tritonclient", "numpy", "tqdm", "pyarrow"},
    "client.compare": {"client", "tritonclient", "numpy", "pyarrow"},
    "engines.store": {"client", "trainer", "model_repository", "pyarrow", "tritonclient"},  # in Triton's container
}


@pytest.mark.parametrize(("module", "needed"), NEEDED.items())
def test_what_is_loaded_elsewhere_needs_no_more_than_it_may(module: str, needed: set[str]) -> None:
    assert set().union(*(third_party(_source(name)) for name in reached_from(module))) == needed


def reached_from(module: str) -> set[str]:
    reached = {module}
    while more := {name for module in reached for name in imported(_source(module))} - reached:
        reached |= more
    return reached


# What the workers of the benches import of ours: in the environments of the peers there is nothing but Python.
PLAIN = ("bench.serving.worker", "bench.serving.load", "bench.children", "bench.training.job")
WORKERS = sources("bench/serving/workers", "bench/training/workers")


@pytest.mark.parametrize(
    "path", [path for path in WORKERS if path.stem not in ("ours", "engine", "matrices", "__init__")], ids=_named
)
def test_a_peers_worker_runs_where_nothing_of_ours_is_installed(path: Path) -> None:
    assert all(name in PLAIN or _is_in(name, "bench.training.workers") for name in imported(path))


def test_what_peers_workers_import_needs_the_standard_library_only() -> None:
    subprocess.run([sys.executable, "-S", "-c", f"import {', '.join(PLAIN)}"], cwd=ROOT, check=True)
