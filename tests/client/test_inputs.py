"""The client, the load test and the trainer read one format: odd files give records, or one line that names them."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import rank
from client.errors import DisRankerError
from loadtest._traffic import read_groups as loadtest_groups
from tests.support.odd_servers import OddServer, odd_server
from trainer.data.records import read_groups as trainer_groups

# JSON as text: what json.dumps cannot write is among it.
ODD = [
    "null", "true", "7", "-1", "1e999", "NaN", "9" * 400, "9" * 5000, "[]", "{}", '""', '" "', r'"\ud800"', r'"\u0000"',
    "[" * 900 + "]" * 900, "[" * 20_000, '"not closed',
]  # fmt: skip
TEXTS = ['"river"', '"中文"', r'"bridge \ud83d"', *ODD]
PLAIN = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def fields(**values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """An object with each of the fields, or without it."""
    left_out = {name: st.none() | value for name, value in values.items()}
    return st.fixed_dictionaries(left_out).map(
        lambda given: "{" + ", ".join(f'"{name}": {value}' for name, value in given.items() if value is not None) + "}"
    )


def usually(value: str, odd: list[str]) -> st.SearchStrategy[str]:
    return st.just(value) | st.just(value) | st.just(value) | st.sampled_from(odd)


def queries(ids: st.SearchStrategy[str], **more: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """A line, mostly of a query with two documents."""
    document = fields(doc_id=ids, title=usually('"a title"', TEXTS), summary=usually('"text"', TEXTS), **more)
    documents = st.lists(document | st.sampled_from(['"a text"', *ODD]), max_size=2).map(
        lambda items: f"[{', '.join(items)}]"
    )
    text = fields(query_id=ids, query=usually('"garden"', TEXTS), documents=documents | st.sampled_from(ODD))
    return text.map(str.encode) | st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"")) | st.just(b"")


def numbered(line: bytes, number: int) -> bytes:
    """The line with ids that are there and differ, if it is a query: the trainer needs them, others do not."""
    try:
        record = json.loads(line)
        for place, document in enumerate(record["documents"]):
            if isinstance(document, str):
                document = record["documents"][place] = {"summary": document}
            document["doc_id"] = f"d{place}"
        return json.dumps({**record, "query_id": f"q{number}"}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return line


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with odd_server(OddServer(np.arange)) as url:
        yield url


def verdicts(path: Path, url: str) -> dict[str, str]:
    """The output of each user for a file: nothing, or the one line of its error."""
    found = {"rank.py": ranked(path, url)}
    for name, read in (("trainer", trainer_groups), ("loadtest", loadtest_groups)):
        try:
            found[name] = "" if read(path) else "nothing was read"
        except DisRankerError as error:
            found[name] = str(error)
    for message in found.values():  # there is no other file, and no server is at fault
        assert message == "" or re.match(rf"{re.escape(str(path))}(:[123]: |: no queries in)", message), message
        assert "\n" not in message
    return found


def ranked(path: Path, url: str) -> str:
    output, printed = path.with_name("ranked.jsonl"), io.StringIO()
    with redirect_stderr(printed):
        code = rank.main(["--queries", str(path), "--output", str(output), "--url", url])
    for left in path.parent.glob("ranked.jsonl*"):
        left.unlink()
    assert code in (0, 2)
    return "" if code == 0 else printed.getvalue().strip().removeprefix("error: ").partition(" (ranked.jsonl.part")[0]


@PLAIN
@given(lines=st.lists(queries(usually('"an id"', TEXTS)), min_size=1, max_size=3))
def test_all_users_accept_and_refuse_the_same_where_ids_are_given(lines: list[bytes], tmp_path: Path, url: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b"\n".join(numbered(line, number) for number, line in enumerate(lines)))
    found = verdicts(path, url)
    if not path.read_bytes().strip():  # rank.py has nothing to rank, the others nothing to work with
        del found["rank.py"]
    assert len({message == "" for message in found.values()}) == 1, found


@PLAIN
@given(
    lines=st.lists(
        queries(st.sampled_from(['"a"', '"b"', *ODD]), label=usually("1", ODD), clicks=usually("1", ODD)), max_size=3
    )
)
def test_whatever_is_in_a_file_gives_records_or_one_line(lines: list[bytes], tmp_path: Path, url: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = verdicts(path, url)
    if found["rank.py"]:
        assert found["trainer"] and found["loadtest"]  # the trainer asks for more, nobody for less


@pytest.mark.parametrize("odd", ODD)
def test_each_odd_value_alone(odd: str, tmp_path: Path, url: str) -> None:
    """In every place of a record that has one."""
    record = {"query_id": '"q"', "query": '"garden"', "documents": '[{"doc_id": "d", "title": "a"}]'}
    for name in record:
        text = ", ".join(f'"{field}": {odd if field == name else value}' for field, value in record.items())
        (tmp_path / "queries.jsonl").write_text("{" + text + "}")
        found = verdicts(tmp_path / "queries.jsonl", url)
        if (name, odd) not in (("query_id", '""'),):  # the number of its line will do for all but the trainer
            assert len({message == "" for message in found.values()}) == 1, (name, found)


PACKED = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}


@pytest.mark.parametrize("suffix", PACKED)
def test_packed_files_are_read_and_cut_ones_refused(tmp_path: Path, suffix: str) -> None:
    record = {"query_id": "q", "query": "garden", "documents": [{"doc_id": "d", "title": "river " * 9}]}
    lines = [json.dumps({**record, "query_id": str(number)}).encode() + b"\n" for number in range(500)]
    packed = b"".join(PACKED[suffix](part) for part in (b"".join(lines[:300]), b"".join(lines[300:])))
    path = tmp_path / f"queries.jsonl{suffix}"
    path.write_bytes(packed)
    assert [group.query_id for group in trainer_groups(path)] == [str(number) for number in range(500)]
    for broken in (packed[:-30], b"no such format" * 9):
        path.write_bytes(broken)
        with pytest.raises(DisRankerError, match=rf"^{path}: cannot be read: \S.*"):
            trainer_groups(path)
