"""Settings of a client, targets, and TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from client import Connection, InvalidRequestError, ServerUnavailableError
from client.connection import parse_target
from client.records import sigmoid
from client.wire import parts
from tests.support.clients import DOCUMENTS, QUERY
from tests.support.odd_servers import OddServer, odd_server

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"servers": ()}, "name at least one"),
        ({"servers": ("a\x00:1",)}, "no addresses"),
        ({"servers": ("\ud800:1",)}, "no addresses"),
        ({"servers": ("a:1", "http://b:1")}, "http://b:1 is a URL: name host:port"),
        *(({"timeout_s": value}, "timeout_s must be above 0") for value in (0.0, -1.0, NAN, INF, 1e300)),
        *(({"keepalive_s": value}, "keepalive_s must be above 0") for value in (0.0, -1.0, NAN, INF, 1e9)),
        *(({"attempts": value}, "attempts must be at least 1") for value in (0, -1)),
        *(({"hedge": value}, "hedge must be a share between 0 and 1") for value in (0.0, 1.0, -0.5, NAN, INF)),
        *(({"priority": value}, "priority must be 1") for value in (0, 3, -1)),
        ({"max_documents": -1}, "max_documents must be at least 1, or 0"),
        ({"root_certificates": Path("/nowhere.pem")}, "/nowhere.pem: no such file"),
    ],
)
def test_settings_that_make_no_sense(face: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Connection(**settings)
    with pytest.raises(InvalidRequestError, match=message):
        face(**settings)


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 1e9}, {"keepalive_s": 2e6}, {"attempts": 10**9}, {"max_documents": 2**40}]
)
def test_large_settings_work(face: Any, settings: dict[str, Any]) -> None:
    with odd_server(OddServer()) as url, face(url, **settings) as client:
        assert client.score(QUERY, DOCUMENTS) == [0.0] * 4


def test_targets() -> None:
    default = Connection(("a:1",), "ranker")
    assert parse_target("teacher_ranker@b:2", default) == Connection(("b:2",), "teacher_ranker")
    assert parse_target("teacher_ranker", default) == Connection(("a:1",), "teacher_ranker")
    assert parse_target("@b:2, c:3", default) == Connection(("b:2", "c:3"), "ranker")
    for text in ("", "@", "ranker@"):
        with pytest.raises(InvalidRequestError, match="a target is model@host:port"):
            parse_target(text, default)


def test_a_connection_with_tls(face: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    with odd_server(OddServer(), credentials) as url:
        with face(url, root_certificates=tmp_path / "root.pem") as client:
            assert client.score(QUERY, ["river"]) == [0.0]
        for tls in (True, False):  # the system does not know this authority; nothing speaks plainly here
            with face(url, attempts=1, tls=tls) as client, pytest.raises(ServerUnavailableError, match="no server"):
                client.score(QUERY, ["river"])


@pytest.mark.parametrize(("limit", "sizes"), [(3, [2, 2, 3]), (7, [7]), (1, [1] * 7), (4, [3, 4])])
def test_parts_are_of_nearly_equal_size(limit: int, sizes: list[int]) -> None:
    assert [part.stop - part.start for part in parts([DOCUMENTS[0]] * 7, limit)] == sizes


def test_a_probability_neither_overflows_nor_leaves_its_range() -> None:
    assert [sigmoid(logit) for logit in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
