"""Who may import whom: the architecture, held by a test."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests import ROOT

ENCODING = "model_repository.tokenizer.pair_encoding"
STUDENT = "model_repository.student"

# What each top folder may import of the others; a module that Triton loads imports nothing of ours.
FOLDERS: dict[str, set[str]] = {
    "client": set(),
    "trainer": {"client", ENCODING},
    "engines": {"client", "trainer", ENCODING, STUDENT},
    "build_engines": {"engines", "client", "trainer", ENCODING, STUDENT},
    "loadtest": {"client"},
    "bench": {"client", "loadtest", "engines", "trainer", ENCODING, STUDENT, "build_engines"},
    "embedded_triton": {f"{STUDENT}.served"},
}
# Inside a folder, from the top floor to the ground: a room imports from the floors below it only.
COMMANDS = {"init", "pretrain", "rank_sft", "score", "distill", "merge", "evaluate", "plan"}
FLOORS: dict[str, list[set[str]]] = {
    "trainer": [COMMANDS, {"command"}, {"training"}, {"scoring", "measures"}, {"checkpoints"}, {"data", "packed"}],
    "engines": [
        {"versions"},
        {"repository"},
        {"builders"},
        {"job"},
        {"quantise"},
        {"graph", "parity"},
        {"table"},
        {"records"},
    ],
}
OURS = {*FOLDERS, "model_repository", "examples", "tests"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it; a name out of a package counts as a module of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = {alias.name for alias in node.names if _source(f"{node.module}.{alias.name}").exists()}
            names |= {f"{node.module}.{name}" for name in inside} or {node.module}
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
    folder, *rooms = module_of(path).split(".")
    below = [
        _floor(folder, name) for name in imported(path) if _is_in(name, folder) and name.split(".")[1:2] != rooms[:1]
    ]
    assert all(floor > _floor(folder, module_of(path)) for floor in below)


def _floor(folder: str, module: str) -> int:
    """The floor of a module of the folder, counted from the top."""
    room = [*module.split("."), ""][1]
    return next(number for number, floor in enumerate(FLOORS[folder]) if room in floor)


def test_every_room_of_the_trainer_and_the_engines_has_a_floor() -> None:
    for folder in ("trainer", "engines"):
        rooms = {
            module_of(path).split(".")[1]
            for path in sources(folder)
            if path.parent != ROOT / folder or path.stem != "__init__"
        }
        assert rooms == set().union(*FLOORS[folder])


def third_party(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {str(name).partition(".")[0] for name in modules} - set(sys.stdlib_module_names)


def test_the_contract_needs_only_numpy_and_tokenizers() -> None:
    files = [*_source(ENCODING).parent.glob("*.py")]
    assert set().union(*map(third_party, files)) == {"numpy", "tokenizers"}
    assert (
        set().union(*map(imported, files)) == set()
    )  # relative imports only: Triton loads the folder as it lies there


def test_the_client_library_needs_only_tritonclient_and_numpy() -> None:
    library = reached_from("client")
    assert "client.asynchronous" in library
    assert set().union(*(third_party(_source(module)) for module in library)) - OURS == {"tritonclient", "numpy"}


@pytest.mark.parametrize("name", ["client.rank", "client.compare"])
def test_the_clients_commands_need_no_more_than_it_and_show_a_bar_where_they_can(name: str) -> None:
    needed = set().union(*(third_party(_source(module)) for module in reached_from(name))) - OURS
    assert needed <= {"tritonclient", "numpy", "tqdm"}


def reached_from(module: str) -> set[str]:
    reached = {module}
    while more := {name for module in reached for name in imported(_source(module))} - reached:
        reached |= more
    return reached


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.token_cache",
        "student.served",
        *(f"student.runtime.{name}" for name in ("scheduler", "packing")),
    ],
)
def test_what_tritons_models_share_with_tests_needs_only_numpy(name: str) -> None:
    path = _source(f"model_repository.{name}")
    assert imported(path) == set()
    assert third_party(path) <= {"numpy"}


WORKERS = sources("bench/training/workers")


@pytest.mark.parametrize("path", [path for path in WORKERS if path.stem not in ("ours", "__init__")], ids=_named)
def test_a_peers_worker_runs_where_nothing_of_ours_is_installed(path: Path) -> None:
    assert all(_is_in(name, "bench.training.workers") or name == "bench.training.job" for name in imported(path))
