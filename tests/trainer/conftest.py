"""Data and checkpoints that most tests of the trainer start from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints import tiny_bert, tiny_bi_encoder, tiny_llama, tiny_llm, write_groups
from tests.support.stores import Store, forget, store_running
from trainer import addresses, storage, stores


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judged queries."""
    return write_groups(tmp_path_factory.mktemp("data") / "judged.jsonl")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "scorer")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "scorer")


@pytest.fixture(scope="session")
def deep_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer with more layers than the others."""
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert", layers=4)


@pytest.fixture(scope="session")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It puts a prompt before queries only."""
    return tiny_bi_encoder(tmp_path_factory.mktemp("bi") / "encoder", prompts={"query": "market garden: "})


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM."""
    return tiny_llm(tmp_path_factory.mktemp("llm") / "llm")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store_running(tmp_path_factory.mktemp("mirror") / "here") as store:
        yield store


@pytest.fixture
def given(store: Store, data: Path, bert: Path) -> Iterator[str]:
    """An address with ``data.jsonl`` and a scorer, ``bert``, and no mirror of it here."""
    store.times = 0
    for source, name in ((data, "data.jsonl"), (bert, "bert")):
        path = addresses.local(f"{store.address}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
        storage.publish(path)
    forget()
    yield store.address
    store.times = 0
    stores.connected("s3").delete_dir_contents("bucket")
    forget()
