"""Both faces of the client against a running server, and the generated one against its source."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import (
    AsyncRankingClient,
    Document,
    InvalidAnswerError,
    InvalidRequestError,
    RankingClient,
    RankingRequest,
    unasync,
)
from client.records import TEXTS
from client.wire import PARTS, TIMES, Times
from model_repository.tokenizer import pair_encoding
from tests.support.clients import DOCUMENTS, QUERY, SCORES_ABS, same
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.servers import Reference, Server
from tests.support.waiting import PATIENCE_S

REQUESTS = [RankingRequest(query, DOCUMENTS[:count]) for query, count in (("river", 3), ("winter", 4), ("market", 1))]


def test_the_client_for_threads_is_made_of_the_one_for_asyncio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unasync.main(["--check"]) == 0
    monkeypatch.setattr(unasync, "HERE", tmp_path)
    source, made = (tmp_path / name for name in ("fleet_async.py", "fleet.py"))
    monkeypatch.setattr(unasync, "MADE", {source.name: made.name})
    source.write_text("class AsyncA:\n    async def __aenter__(self) -> int:\n        return await async_f()\n")
    assert unasync.main([]) == unasync.main(["--check"]) == 0
    assert made.read_text() == "class A:\n    def __enter__(self) -> int:\n        return f()\n"
    made.write_text("class A: ...\n")
    assert unasync.main(["--check"]) == 1
    assert "fleet.py is not what fleet_async.py says: python client/unasync.py" in capsys.readouterr().err


def test_rank_orders_by_score_and_tells_what_was_cut(face: Any, server: Server, reference: Reference) -> None:
    expected = reference(QUERY, [pair_encoding.Document(title=one.title, summary=one.summary) for one in DOCUMENTS])
    with face(server.url) as client:
        ranked = client.rank(QUERY, DOCUMENTS)
        assert [found.rank for found in ranked] == [1, 2, 3, 4]
        assert [found.index for found in ranked] == np.argsort(-expected.scores).tolist()
        for found in ranked:
            assert found.score == pytest.approx(expected.scores[found.index], abs=1e-4)  # another library's kernels
            assert found.probability == pytest.approx(1 / (1 + np.exp(-found.score)))
            assert found.doc_id == (DOCUMENTS[found.index].doc_id or "3")
            assert found.title == DOCUMENTS[found.index].title
            assert found.truncated == (found.doc_id == "d9")
        assert same(client.rank(QUERY, DOCUMENTS, top_k=2), ranked[:2])
        assert same(client.rank(QUERY, DOCUMENTS, top_k=9), ranked)
        scores = [found.score for found in sorted(ranked, key=lambda found: found.index)]
        assert client.score(QUERY, DOCUMENTS) == pytest.approx(scores, abs=SCORES_ABS)
        assert client.document_limit() == 1000
        assert client.is_ready()


def test_documents_may_be_mappings_and_strings(client: RankingClient) -> None:
    """Whatever their text is called, what is empty is nothing, and what is none is refused rather than scored so."""
    mappings = [{"title": None, "summary": "", "text": None, name: "river bridge", "url": 3} for name in TEXTS]
    nothing = Document(title=None)  # type: ignore[arg-type]
    expected = client.score(QUERY, ["river bridge", ""])
    found = client.score(QUERY, [*mappings, {"title": "river", "text": "bridge"}, {"summary": None}, nothing])
    assert found == pytest.approx([expected[0]] * (len(TEXTS) + 1) + [expected[1]] * 2, abs=SCORES_ABS)
    with pytest.raises(
        TypeError
    ):  # the tokenizer's Document begins with the title: positions would be swapped silently
        Document("d1", "river", "bridge")  # type: ignore[call-arg]


def test_equal_scores_keep_the_callers_order(face: Any) -> None:
    with odd_server(OddServer(np.zeros)) as url, face(url) as client:
        assert [found.index for found in client.rank(QUERY, ["river"] * 5)] == [0, 1, 2, 3, 4]


def test_a_lone_surrogate_is_what_it_is_in_training(client: RankingClient, reference: Reference) -> None:
    text = "river \ud83d bridge \ud83d\ude00"
    expected = reference(QUERY, [pair_encoding.Document(title=text, summary="")]).scores
    assert client.score(QUERY, [text]) == pytest.approx(expected.tolist(), abs=1e-4)  # another library's kernels


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        (" ", ["river"], "the query is empty"),
        (QUERY, [], "no documents: a request has at least one"),
        (QUERY, "river", "a list of documents, not one str"),
        (QUERY, {"d1": "river"}, "a list of documents, not one dict"),
        (QUERY, None, "a list of documents, not one NoneType"),
        (3, ["river"], "the query must be a string, not int"),
        (QUERY, ["a", "b" * 5_000_000], "document 1 has 5000000 bytes"),
        (QUERY, ["a", {"title": 3}], "^document 1: 'title' of a document must be a string, not int"),
        (QUERY, ["a", Document(title=3)], "^document 1: 'title' of a document must be"),  # type: ignore[arg-type]
        (QUERY, ["a", {"id": "d1", "words": "river"}], r"^document 1: .* \(summary, text, .*; it has 'id', 'words'"),
        (QUERY, ["a", b"river"], "^document 1: a document is a string, a mapping or a Document, not bytes"),
    ],
)
def test_a_request_at_fault(face: Any, server: Server, query: str, documents: list[str], message: str) -> None:
    with face(server.url) as client:
        with pytest.raises(InvalidRequestError, match=message) as caught:
            client.rank(query, documents)
        assert caught.value.server in ("", server.url)
        with pytest.raises(InvalidRequestError, match="top_k must be at least 1, not 0"):
            client.rank(QUERY, DOCUMENTS, top_k=0)
        assert len(client.score(QUERY, DOCUMENTS)) == 4


def test_more_documents_than_the_limit_are_split_and_merged(face: Any, server: Server, client: RankingClient) -> None:
    for limit in (1, 3):
        with face(server.url, max_documents=limit) as split:
            assert same(split.rank(QUERY, DOCUMENTS), client.rank(QUERY, DOCUMENTS))


def test_10_000_documents_are_scored_as_their_parts_are(face: Any, server: Server) -> None:
    many = [f"river {number} market {number * 7}" for number in range(10_000)]
    with face(server.url) as client:
        pieces = [client.score(QUERY, many[start : start + 1000]) for start in range(0, len(many), 1000)]
        assert client.score(QUERY, many) == pytest.approx([score for piece in pieces for score in piece], abs=1e-6)


def test_an_error_of_a_part_says_which(face: Any, server: Server) -> None:
    documents = [*["river"] * 5, "x" * 1_000_001]
    with (
        face(server.url, max_documents=3) as client,
        pytest.raises(InvalidRequestError, match=r"of documents 3 to 5, counted from 0 here: .* document 2 has"),
    ):
        client.rank(QUERY, documents)


def test_every_server_gets_no_more_than_it_takes(face: Any) -> None:
    """Whichever server was asked first, and though one may be asked only when its turn comes."""
    for limits in ([1000, 32], [32, 1000]):
        services = [OddServer(limit=limit) for limit in limits]
        with (
            odd_server(services[0]) as first,
            odd_server(services[1]) as second,
            face([first, second]) as client,
        ):
            for _ in range(4):
                assert client.score(QUERY, ["river"] * 100) == [0.0] * 100
            assert client.document_limit() == 32
        assert all(max(service.sizes) <= limit for service, limit in zip(services, limits, strict=True))


def test_a_server_that_comes_back_with_a_smaller_limit_is_asked_again(face: Any) -> None:
    service = OddServer(limit=1000)
    with odd_server(service) as url, face(url) as client:
        client.score(QUERY, ["river"] * 100)
        service.limit, service.act = 32, refusing(grpc.StatusCode.UNAVAILABLE, "Socket closed", times=1)
        client.score(QUERY, ["river"] * 100)
    assert service.sizes[0] == 100 and max(service.sizes[2:]) <= 32


def test_many_requests_keep_their_order_and_one_that_fails_does_not_fail_the_others(
    face: Any, server: Server, client: RankingClient
) -> None:
    requests = [REQUESTS[number % 3] for number in range(40)]
    requests[5] = RankingRequest(" ", ["river"])
    expected = [client.rank(request.query, request.documents, 2) for request in REQUESTS]
    with face(server.url) as asked:
        found = list(asked.rank_many(iter(requests), 2, max_in_flight=4, return_errors=True))
        for number, answer in enumerate(found):
            if number == 5:
                assert isinstance(answer, InvalidRequestError)
            else:
                assert same(answer, expected[number % 3])
        assert len(found) == 40
        with pytest.raises(InvalidRequestError, match="the query is empty"):
            list(asked.rank_many(requests))


def test_an_answer_comes_as_soon_as_it_is_there(face: Any) -> None:
    """The source gives a request only when the one before was answered."""
    answered = threading.Semaphore()

    def one_by_one() -> Iterator[RankingRequest]:
        for _ in range(5):
            assert answered.acquire(timeout=PATIENCE_S), "the answer before has not come"
            yield REQUESTS[0]

    count = 0
    with odd_server(OddServer(np.arange)) as url, face(url) as client:
        for _ in client.rank_many(one_by_one()):
            count += 1
            answered.release()
    assert count == 5


def test_a_source_that_fails_does_so_after_the_answers_before(face: Any) -> None:
    def failing() -> Iterator[RankingRequest]:
        yield from REQUESTS[:2]
        raise OSError("disk")

    answers = []
    with odd_server(OddServer(np.arange)) as url, face(url) as client, pytest.raises(OSError, match="disk"):
        for answer in client.rank_many(failing()):
            answers.append(answer)
    assert len(answers) == 2


def test_requests_are_taken_as_they_are_needed(face: Any) -> None:
    taken = []

    def endless() -> Iterator[RankingRequest]:
        while True:
            taken.append(1)
            yield REQUESTS[0]

    with odd_server(OddServer(np.arange)) as url, face(url) as client:
        stream = client.rank_many(endless(), max_in_flight=2)
        for _ in range(10):
            next(stream)
        stream.close()
    assert len(taken) <= 10 + 2 * 2


def test_what_no_client_can_do(face: Any) -> None:
    with face("127.0.0.1:9") as client:
        for number in (0, -1):
            with pytest.raises(InvalidRequestError, match=f"max_in_flight must be at least 1, not {number}"):
                next(client.rank_many(REQUESTS, max_in_flight=number))


def test_one_client_serves_several_threads(server: Server) -> None:
    with RankingClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        expected = [client.score(request.query, request.documents) for request in REQUESTS]
        futures = [pool.submit(client.score, one.query, one.documents) for one in REQUESTS * 20]
        for number, future in enumerate(futures):
            assert future.result() == pytest.approx(expected[number % 3], abs=SCORES_ABS)


def test_a_cancelled_call_is_cancelled_at_the_server() -> None:
    held = Held()

    async def ask(url: str) -> None:
        async with AsyncRankingClient(url) as client:
            task = asyncio.create_task(client.score(QUERY, ["river"]))
            await asyncio.to_thread(held.held.wait, PATIENCE_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(held.gone.wait, PATIENCE_S)

    with odd_server(OddServer(act=held)) as url:
        asyncio.run(ask(url))


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda count: np.full(count, np.nan), ("document 0 with nan", "4 of 4 are not finite", "see its engine")),
        (lambda count: np.array([0.5, np.inf, 1, 2]), ("document 1 with inf", "1 of 4")),
        (lambda count: np.zeros(count - 1), ("answered 4 documents with SCORES of shape (3,)",)),
        (lambda count: np.zeros((count, 1)), ("SCORES of shape (4, 1)", "is the model a ranker?")),
    ],
)
def test_answers_that_cannot_rank(face: Any, scores: Any, words: tuple[str, ...]) -> None:
    service = OddServer(scores)
    with odd_server(service) as url, face(url) as client:
        with pytest.raises(InvalidAnswerError) as caught:
            client.score(QUERY, DOCUMENTS)
        assert all(word in str(caught.value) for word in (url, *words))
        service.reply = np.arange
        assert client.score(QUERY, DOCUMENTS) == [0, 1, 2, 3]


def test_times_of_another_release_do_not_spoil_an_answer(face: Any) -> None:
    service = OddServer(np.arange)
    with odd_server(service) as url, face(url) as client:
        told = list[Times]()
        collecting = TIMES.set(told)
        try:
            for service.more_parts in (0, 1):
                assert client.score(QUERY, DOCUMENTS) == [0, 1, 2, 3]
        finally:
            TIMES.reset(collecting)
    assert [[*times] for times in told] == [[*PARTS], []]
