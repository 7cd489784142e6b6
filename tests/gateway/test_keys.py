"""Whose a key is, how often it may ask, how often an address may be wrong, and files of keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client import InvalidRequestError
from client.gateway import keys as module
from client.gateway.connections import neighbourhood
from client.gateway.keys import Bucket, Keys
from client.gateway.problems import Problem
from client.gateway.settings import read

HOME, ELSEWHERE, NEXT_DOOR = "2001:db8:1:2:3::4", "192.0.2.7", "2001:db8:1:2:ffff::"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# name key rate\nsearch s3cret\n\nnotebook 0ther 0.01\n")
    return path


def refused(keys: Keys, authorization: str, host: str = HOME) -> int:
    with pytest.raises(Problem) as caught:
        keys.check(authorization, host)
    assert ("Retry-After" in caught.value.headers) == (caught.value.status == 429)
    return caught.value.status


def test_a_key_has_a_name_and_perhaps_a_rate(file: Path) -> None:
    keys = Keys(read(["--key_file", str(file), "--api_keys", "a b,c"]))
    assert [keys.check(f"bearer {key}", HOME) for key in ("s3cret", "a b", "c", "s3cret", "0ther")] == [
        "search", "1", "2", "search", "notebook"
    ]  # fmt: skip
    assert refused(keys, "Bearer 0ther") == 429
    assert [refused(keys, wrong) for wrong in ("", "Bearer", "Bearer search", "Basic s3cret", "Bearer \xff")] == [
        401
    ] * 5
    assert not Keys(read([])).needed


def test_whoever_guesses_is_stopped_and_whoever_was_right_is_not(file: Path) -> None:
    keys = Keys(read(["--key_file", str(file)]))
    keys.check("Bearer s3cret", HOME)
    assert [refused(keys, "") for _ in range(12)] == [401] * 12  # is no guess
    assert [refused(keys, f"Bearer {number}") for number in range(12)] == [401] * 10 + [429] * 2
    assert refused(keys, "Bearer 0ther", NEXT_DOOR) == 429  # it is right
    assert keys.check("Bearer s3cret", HOME) == "search"
    assert keys.check("Bearer 0ther", ELSEWHERE) == "notebook"


def test_addresses_that_are_counted_as_one() -> None:
    assert (
        neighbourhood(HOME) == neighbourhood(NEXT_DOOR) == neighbourhood("2001:db8:1:2::%eth0") == "2001:db8:1:2::/64"
    )
    assert neighbourhood(f"::ffff:{ELSEWHERE}") == neighbourhood(ELSEWHERE) == ELSEWHERE
    assert neighbourhood("a proxy's word") == "a proxy's word"


def test_what_is_taken_comes_back_in_time() -> None:
    now = 0.0
    bucket = Bucket(per_s=0.5, most=2, clock=lambda: now)
    bucket.take()
    bucket.take()
    assert bucket.wait_s() == 2
    now = 1.5
    assert bucket.wait_s() == 0.5
    now = 1000
    bucket.take()
    assert bucket.wait_s() == 0


def test_a_file_is_read_again_when_it_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOKED_S", 0)
    keys = Keys(read(["--key_file", str(file)]))
    file.write_text("search new-secret\n")
    assert keys.check("Bearer new-secret", HOME) == "search"
    assert refused(keys, "Bearer s3cret") == 401
    changes: list[Callable[[], object]] = [lambda: file.write_text("search\n"), file.unlink, file.touch]
    for change in changes:
        change()
        assert keys.check("Bearer new-secret", HOME) == "search"
        assert f"the keys stay as they were: {file}" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": has no key: a line is NAME KEY, or NAME KEY REQUESTS_PER_SECOND"),
        ("a\n", ":1: has 1 words: a line is"),
        ("a b 1 2\n", ":1: has 4 words: a line is"),
        ("# a\na b fast\n", ":2: 'fast' is no number of requests a second, 0.001 or more"),
        ("a b nan", ":1: 'nan' is no number"),
        ("a b 0", ":1: '0' is no number"),
        ("a b\na c", ":2: the name 'a', or its key, is there twice"),
        ("a b\nc b", ":2: the name 'c', or its key, is there twice"),
        ("a b\xff\n".encode("latin-1"), ": cannot be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidRequestError) as caught:
        Keys(read(["--key_file", str(path)]))
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)
