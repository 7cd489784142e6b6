"""Fixtures that several test files share. Most of them use one server."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.checkpoints import tiny_bert, write_groups
from tests.support.exports import exported_once
from tests.support.gateways import Gateway, gateway_running
from tests.support.servers import Reference, Server, build, running

MadeOnce = Callable[[str, Callable[[Path], object]], Path]

# A busy machine is no failure, and every run tries the same examples.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("steady")

# Ray clusters of this process and of those that it starts: else all would share a file of the home directory.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex())


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Restore Ctrl-C. Background jobs of a shell ignore it, and the processes that tests interrupt would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Gives a folder by its name, for all processes of a run: the first that asks makes it, and others wait for it."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, begun = common / name, common / f"{name}.begun"
        with (common / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not folder.exists():
                shutil.rmtree(begun, ignore_errors=True)  # of one that failed
                begun.mkdir()
                make(begun)
                begun.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def served_folder(made_once: MadeOnce) -> Path:
    """A folder with the checkpoint, its exported graph and the repository that most tests serve."""

    def make(folder: Path) -> None:
        bert = tiny_bert(folder / "bert", max_pair_tokens=256, row_length=256, slots_per_row=16, max_documents=1000)
        with exported_once(folder / "graph"):
            build(bert, folder / "model_repository", "fp32")

    return made_once("served", make)


@pytest.fixture(scope="session")
def served_checkpoint(served_folder: Path) -> Path:
    """A tiny BERT with the tracked dimensions."""
    return served_folder / "bert"


@pytest.fixture(scope="session")
def served_repository(served_folder: Path) -> Path:
    return served_folder / "model_repository"


@pytest.fixture(scope="session")
def server(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(served_repository, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def reference(served_checkpoint: Path) -> Reference:
    return Reference(served_checkpoint)


@pytest.fixture(scope="session")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The server's model under two names, with examples."""
    folder = tmp_path_factory.mktemp("gateway")
    examples = write_groups(folder / "examples.jsonl", queries=12)
    models = f"ranker=ranker@{server.url},again=ranker@{server.url}"
    with gateway_running(folder / "log", "--models", models, "--examples", str(examples)) as gateway:
        yield replace(gateway, examples=examples)
