"""The fixtures of tests/support/fixtures.py for each process that runs tests, and the order of the files."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests import ROOT

CRASHED = pytest.StashKey[bool]()

# In the order in which they begin: the file that begins last must not be a long one.
LONG = (
    "tests/test_readme.py",
    "tests/engines/test_versions.py",
    "tests/engines/test_build_engines.py",
    "tests/bench/test_quality.py",
    "tests/test_durability.py",
    "tests/test_faults.py",
    "tests/trainer/training",
    "tests/test_windows.py",
    "tests/bench",
    "tests/engines",
    "tests/test_embedded_triton.py",
    "tests/trainer/scoring",
    "tests/model_repository",
    "tests/loadtest",
    "tests/gateway",
)


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out tests to others needs no fixtures, and would import PyTorch for them."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.support.fixtures")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Remember that a process that ran tests ended by itself."""
    if error:
        node.config.stash[CRASHED] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End with another code than that of tests that failed if a process crashed or a file could not be collected.

    Else the Makefile would run again what failed, but not the tests that were lost.
    """
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    errors = reporter.stats.get("error", ()) if reporter else ()
    if session.config.stash.get(CRASHED, False) or any(isinstance(one, pytest.CollectReport) for one in errors):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def pytest_collection_finish() -> None:
    """Spare the garbage collector all that was imported: it would look at a million objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / name: place for place, name in enumerate(LONG)}

    def place(item: pytest.Item) -> int:
        return next((places[path] for path in (item.path, *item.path.parents) if path in places), len(LONG))

    items.sort(key=place)
