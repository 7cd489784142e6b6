"""Between a request and the engine, on the running server: the cache, documents as ids, who goes first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from client import InvalidRequestError, RankingClient, RankingError, Truncation
from client.wire import PARTS
from model_repository.tokenizer.pair_encoding import (
    Document,
    DocumentIds,
    EncodingError,
    PairEncoder,
)
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_xlm_roberta
from tests.support.gated import gated
from tests.support.requests import (
    STRANGE,
    answer,
    assert_equal,
    by_ids,
    documents,
    id_inputs,
    strings,
    student_inputs,
    tensors,
)
from tests.support.servers import Reference, Server, running
from tests.support.waiting import PATIENCE_S, eventually


def test_documents_as_ids_score_as_their_texts(server: Server, reference: Reference) -> None:
    strange = [*(Document(title=text, summary=text) for text in STRANGE), Document(title="", summary="")]
    for query, candidates in (
        ("garden bridge", [*documents(60), *strange]),
        ("river " * 100, [*documents(60), *strange]),
        ("garden", documents(1000, longest=40)),
    ):
        ids = reference.encoder.document_ids(candidates)
        assert_equal(by_ids(server, query, ids), reference(query, candidates))


def test_a_request_by_ids_tells_its_times_if_it_is_asked(server: Server, reference: Reference) -> None:
    inputs = [*strings(QUERY=[b"garden"]), *id_inputs(reference.encoder.document_ids(documents(3)))]
    listed = [grpc.InferRequestedOutput("SCORES")]
    with grpc.InferenceServerClient(server.url) as raw:
        asked, not_asked, not_wanted = (
            raw.infer("ranker_tokens", inputs, parameters=parameters, outputs=outputs)
            for parameters, outputs in (({"times": True}, None), (None, None), ({"times": True}, listed))
        )
    for name, parts in PARTS.items():
        assert asked.as_numpy(name).shape == (len(parts),)
        assert not_asked.as_numpy(name) is not_wanted.as_numpy(name) is None
    assert asked.as_numpy("STUDENT_MS").min() >= 0


BAD = {
    "no documents": ([], [], "DOCUMENT_LENGTHS has 0 elements; a request takes 1 to 1000"),
    "too many documents": ([], [0] * 1001, "DOCUMENT_LENGTHS has 1001 elements"),
    "a negative length": ([7, 7], [3, -1], r"DOCUMENT_LENGTHS\[1\] is -1"),
    "too few ids": ([7, 7], [3], "add up to 3 and DOCUMENT_IDS has 2 elements"),
    "too many ids": ([7, 7], [1], "add up to 1 and DOCUMENT_IDS has 2 elements"),
    "an id of another vocabulary": ([7, 99_999], [0, 1, 1], "document 2 holds the id 99999, which is no token of text"),
    "a negative id": ([-5], [1], "document 0 holds the id -5"),
    "a control token": ([7, 7, 3], [2, 1], "document 1 holds the id 3"),  # [SEP]
}


@pytest.mark.parametrize("case", BAD)
def test_ids_that_no_document_has_are_refused(server: Server, reference: Reference, case: str) -> None:
    ids, lengths, message = BAD[case]
    with pytest.raises(grpc.InferenceServerException, match=message) as caught:
        by_ids(server, "q", DocumentIds(np.array(ids, dtype=np.int32), np.array(lengths)))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("truncation", "message"),
    [
        (Truncation(0), "max_document_tokens must be at least 1, not '0'"),
        (Truncation(True), "max_document_tokens must be at least 1, not 'True'"),
        (Truncation(side="up"), "the side to cut is 'left' or 'right', not 'up'"),
    ],
)
def test_a_truncation_that_cannot_be_meant_is_refused(server: Server, truncation: Truncation, message: str) -> None:
    with RankingClient(server.url) as client, pytest.raises(InvalidRequestError, match=message):
        client.score_documents("garden", ["river"], truncation=truncation)


def test_documents_come_in_one_way(server: Server) -> None:
    numbers = id_inputs(DocumentIds(np.array([7], dtype=np.int32), np.array([1])))
    with grpc.InferenceServerClient(server.url) as raw:
        for inputs in (
            strings(QUERY=[b"q"]),
            [*strings(QUERY=[b"q"], TITLES=[b"t"]), numbers[0]],
            [*strings(QUERY=[b"q"], TITLES=[b"t"], SUMMARIES=[b"s"]), *numbers],
        ):
            with pytest.raises(grpc.InferenceServerException, match="documents come as TITLES and SUMMARIES or as"):
                raw.infer("tokenizer", inputs)
        with pytest.raises(grpc.InferenceServerException, match="QUERY is missing"):
            raw.infer("tokenizer", strings(TITLES=[b"t"], SUMMARIES=[b"s"]))


@pytest.mark.parametrize("tiny", [tiny_bert, tiny_llama, tiny_xlm_roberta])
def test_ids_of_any_text_are_taken_and_control_tokens_are_not(tiny: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny(tmp_path / "checkpoint"))
    texts = [*STRANGE, "[PAD] [MASK]", "</s> <s> <unk>", "river bridge"]
    encoder.check_ids(encoder.document_ids([Document(title=text, summary=text) for text in texts]))
    for name in (encoder.config.start_token, encoder.config.end_token):
        control = np.array([encoder._tokenizer.token_to_id(str(name))], dtype=np.int32)
        with pytest.raises(EncodingError, match="document 1 holds the id"):
            encoder.check_ids(DocumentIds(control, np.array([0, 1])))


def test_documents_that_come_again_are_not_tokenised_again(server: Server, reference: Reference) -> None:
    candidates = [Document(title=f"harbor {number}", summary="winter " * number) for number in range(50)]
    hits, lookups = (server.metrics(f"disranker_document_cache_{name}") for name in ("hits", "lookups"))
    with RankingClient(server.url) as client:
        for query in ("garden", "bridge", "river " * 20, "garden"):  # each leaves other room for the document
            assert_equal(answer(client, query, candidates), reference(query, candidates))
    # There are two instances, each with its own cache: the third request finds its documents in one of them.
    eventually(lambda: server.metrics("disranker_document_cache_lookups") - lookups == 200)
    eventually(lambda: server.metrics("disranker_document_cache_hits") - hits >= 100)  # each number by itself
    eventually(lambda: server.metrics("disranker_document_cache_bytes") > 50 * 65)


def test_who_goes_first_who_fails_and_who_is_dropped(
    served_repository: Path, reference: Reference, tmp_path: Path
) -> None:
    repository, gate = gated(served_repository, tmp_path)
    large, small = documents(1000, longest=60), documents(10, longest=60)
    order = list[str]()

    def ask(name: str, candidates: list[Document]) -> None:
        with RankingClient(server.url) as client:
            assert_equal(answer(client, "silver", candidates), reference("silver", candidates))
        order.append(name)

    with running(repository, tmp_path / "log") as server, ThreadPoolExecutor(3) as pool:
        gate.close()
        answers = [pool.submit(ask, "large", large)]
        gate.wait()
        answers.append(pool.submit(ask, "small", small))
        eventually(lambda: _requests(server, "student") == 2)
        _leave(server, student_inputs([256] * 500))
        gate.open()
        for future in answers:
            future.result()
        assert order == ["small", "large"]

        gate.broken.touch()
        with RankingClient(server.url) as client:
            with pytest.raises(RankingError, match="student: the engine failed; the server's log says why"):
                client.score("silver", ["river"])
            assert "the engine broke" in server.log.read_text()
            gate.broken.unlink()
            assert_equal(answer(client, "silver", small), reference("silver", small))


def _leave(server: Server, pairs: list[grpc.InferInput]) -> None:
    """Ask the student itself, and go."""
    gone = threading.Event()
    with grpc.InferenceServerClient(server.url) as raw:
        before = _requests(server, "student")
        call = raw.async_infer("student", pairs, callback=lambda result, error: gone.set())
        eventually(lambda: _requests(server, "student") > before)
        call.cancel()
        assert gone.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (student_inputs([3, 4], lengths=[3, 5]), "7 token_ids with 2 lengths and 2 document_starts are no pairs"),
        (student_inputs([3], document_starts=[1, 1]), "are no pairs"),
        (student_inputs([], token_ids=[], lengths=[], document_starts=[]), "are no pairs"),
        (student_inputs([257]), "a pair has 1 to 256 tokens, not 257"),
        (student_inputs([3, 0]), "a pair has 1 to 256 tokens, not 0"),
        (student_inputs([1] * 1001), "a request has at most 1000 pairs, not 1001"),
        (student_inputs([3], document_starts=[-1]), "a document starts within its pair, not at -1"),
        (student_inputs([3, 4], document_starts=[3, 10**6]), "a document starts within its pair, not at 1000000"),
        (student_inputs([3], token_ids=[7, -5, 7]), r"token ids are 0 to \d+, not -5"),
        (student_inputs([3], token_ids=[7, 7, 10**8]), r"token ids are 0 to \d+, not 100000000"),
    ],
)
def test_what_no_tokenizer_hands_on_fails_alone(
    server: Server, reference: Reference, pairs: list[grpc.InferInput], message: str
) -> None:
    """Sent to the student itself."""
    with grpc.InferenceServerClient(server.url) as raw:
        with pytest.raises(grpc.InferenceServerException, match=f"student: .*{message}") as caught:
            raw.infer("student", pairs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert raw.infer("student", student_inputs([3, 256])).as_numpy("SCORES").shape == (2,)
    with RankingClient(server.url) as client:
        assert_equal(answer(client, "silver", documents(10)), reference("silver", documents(10)))


@pytest.mark.parametrize("slots", [[0, 6], [-1], [10**6], [-(2**31)]])
def test_slots_that_no_row_has_are_refused(server: Server, slots: list[int]) -> None:
    """Sent to the model that takes scores out of rows."""
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    with grpc.InferenceServerClient(server.url) as raw:
        with pytest.raises(grpc.InferenceServerException, match=f"scores: 6 scores have no slot {slots[-1]}") as caught:
            raw.infer("scores", tensors(scores=scores, slots=np.array(slots, np.int32)))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        whole = raw.infer("scores", tensors(scores=scores, slots=np.array([5, 0], np.int32)))
        assert whole.as_numpy("SCORES").tolist() == [5.0, 0.0]


def test_a_request_has_a_size(server: Server) -> None:
    """As texts and as ids, of documents that are each small enough."""
    most, texts = 16 * 2**20, [b"river " * 3000] * 1000
    ids = DocumentIds(np.full(most // 4 + 1, 7, np.int32), np.array([most // 4, 1]))
    with grpc.InferenceServerClient(server.url) as raw:
        for model, inputs in (
            ("ranker", strings(QUERY=[b"q"], TITLES=texts, SUMMARIES=[b""] * 1000)),
            ("ranker_tokens", [*strings(QUERY=[b"q"]), *id_inputs(ids)]),
        ):
            with pytest.raises(grpc.InferenceServerException, match=f"at most {most} .*max_request_bytes") as caught:
                raw.infer(model, inputs)
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def _requests(server: Server, model: str) -> int:
    """Requests that the model has been given, whether they are answered or not."""
    with grpc.InferenceServerClient(server.url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].execution_count)
