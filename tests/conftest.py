"""Fixtures that several test files share. Most of them use one server."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.checkpoints import tiny_bert
from tests.support.gateways import Gateway, gateway_running
from tests.support.servers import Reference, Server, build, running

settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Restore Ctrl-C. Background jobs of a shell ignore it, and the processes that tests interrupt would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint and the repository that most tests serve, made once for all processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "served"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not (folder / "model_repository/student/1").exists():
            bert = tiny_bert(folder / "bert", max_pair_tokens=256, row_length=256, slots_per_row=16, max_documents=1000)
            build(bert, folder / "model_repository", "fp32")
    return folder


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
    """The server's model under two names."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with gateway_running(log, "--models", f"ranker=ranker@{server.url},again=ranker@{server.url}") as gateway:
        yield gateway
