"""Fixtures that several test files share. Most of them use one server."""

from __future__ import annotations

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
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with the tracked dimensions."""
    directory = tmp_path_factory.mktemp("served") / "bert"
    return tiny_bert(directory, max_pair_tokens=256, row_length=256, slots_per_row=16, max_documents=1000)


@pytest.fixture(scope="session")
def served_repository(served_checkpoint: Path) -> Path:
    return build(served_checkpoint, served_checkpoint.parent / "model_repository", "fp32")


@pytest.fixture(scope="session")
def server(served_repository: Path) -> Iterator[Server]:
    with running(served_repository, served_repository.parent / "server.log") as server:
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
