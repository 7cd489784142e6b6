"""Errors of an S3 store that fails, is set up wrongly, or lacks what is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stages import fails, run
from tests.support.stores import Store
from trainer import addresses, evaluate, score, storage, stores

ASKED = "GET|HEAD"


@pytest.mark.parametrize(("variable", "value"), [("AWS_MAX_ATTEMPTS", "many"), ("AWS_ENDPOINT_URL", "localhost:9000")])
def test_a_setting_that_is_none_is_named(
    given: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(variable, value)
        stores.connected.cache_clear()
        for act in (storage.fetched, storage.listed, lambda name: storage.check_writable(addresses.local(name))):
            with pytest.raises(addresses.StoreError, match=f"{variable} is '{value}'"):
                act(f"{given}/data.jsonl")
    stores.connected.cache_clear()


@pytest.mark.parametrize(
    ("status", "times", "says"),
    [
        ("503 Slow Down", 2, None),
        ("503 Slow Down", 1000, "HTTP status 503"),
        ("403 Forbidden", 1000, "ACCESS_DENIED"),
    ],
)
def test_a_store_that_fails_is_asked_again_where_that_helps_and_then_named(
    given: str, store: Store, status: str, times: int, says: str | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = ["--data", f"{given}/data.jsonl", "--systems", "random", "--output", tmp_path / "table.json"]
    store.refuse(ASKED, status, times)
    if says is None:
        run(evaluate, *flags)
    else:
        line = fails(evaluate, capsys, *flags)
        assert line.startswith(f"error: {given}/data.jsonl: ")
        assert says in line


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://bucket/none.jsonl", "s3://bucket/none.jsonl: cannot be read: No such file or directory"),
        ("s3://nobucket/x.parquet", "s3://nobucket/x.parquet: cannot be read as Parquet"),
        ("s3://bucket/../x.jsonl", "without empty parts, dots and parameters"),
        ("file:///none.jsonl", "/none.jsonl: cannot be read"),
    ],
)
def test_an_address_with_nothing_there_is_named(
    given: str, address: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(evaluate, capsys, "--data", address, "--systems", "random")


def test_an_output_that_cannot_be_put_there_costs_no_work(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", f"{given}/bert", "--data", f"{given}/data.jsonl", "--output", "s3://nobucket/scores.parquet"]
    line = fails(score, capsys, *flags)
    assert line.startswith("error: s3://nobucket/scores.parquet: ")
    assert "NO_SUCH_BUCKET" in line
