"""The fixtures of tests/support/fixtures.py for each process that runs tests, and the order of the files."""

from __future__ import annotations

import pytest

from tests import ROOT

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / name: place for place, name in enumerate(LONG)}

    def place(item: pytest.Item) -> int:
        return next((places[path] for path in (item.path, *item.path.parents) if path in places), len(LONG))

    items.sort(key=place)
