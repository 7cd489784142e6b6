"""Between a request and the engine, on the running server: the cache, documents as ids, who goes first."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format

from client import RankingClient, RankingError
from engines.records import INPUTS
from engines.repository.configs import read_config
from model_repository.tokenizer.pair_encoding import (
    Document,
    DocumentIds,
    EncodingError,
    FloatArray,
    IntArray,
    PairEncoder,
)
from tests.model_repository.test_serving import STRANGE, _inputs, answer, assert_equal, documents
from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_xlm_roberta
from tests.support.servers import Expected, Reference, Server, running

PATIENCE_S = 30.0


def by_ids(server: Server, query: str, ids: DocumentIds) -> Expected:
    with grpc.InferenceServerClient(server.url) as raw:
        result = raw.infer("ranker_tokens", [*_inputs(QUERY=[query.encode()]), *_numbers(ids)])
    return Expected(result.as_numpy("SCORES"), result.as_numpy("TRUNCATED").tolist())


def _numbers(ids: DocumentIds) -> list[grpc.InferInput]:
    inputs = []
    for name, array in (("DOCUMENT_IDS", ids.token_ids), ("DOCUMENT_LENGTHS", ids.lengths)):
        inputs.append(grpc.InferInput(name, array.shape, "INT32"))
        inputs[-1].set_data_from_numpy(array.astype(np.int32))
    return inputs


@pytest.mark.parametrize("query", ["garden bridge", "river " * 100])
def test_documents_as_ids_score_as_their_texts(server: Server, reference: Reference, query: str) -> None:
    candidates = [*documents(60), *(Document(text, text) for text in STRANGE), Document("", "")]
    ids = reference.encoder.document_ids(candidates)
    assert_equal(by_ids(server, query, ids), reference(query, candidates))


def test_a_thousand_documents_as_ids(server: Server, reference: Reference) -> None:
    candidates = documents(1000, longest=40)
    ids = reference.encoder.document_ids(candidates)
    assert_equal(by_ids(server, "garden", ids), reference("garden", candidates))


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


def test_documents_come_in_one_way(server: Server) -> None:
    numbers = _numbers(DocumentIds(np.array([7], dtype=np.int32), np.array([1])))
    with grpc.InferenceServerClient(server.url) as raw:
        for inputs in (
            _inputs(QUERY=[b"q"]),
            [*_inputs(QUERY=[b"q"], TITLES=[b"t"]), numbers[0]],
            [*_inputs(QUERY=[b"q"], TITLES=[b"t"], SUMMARIES=[b"s"]), *numbers],
        ):
            with pytest.raises(grpc.InferenceServerException, match="documents come as TITLES and SUMMARIES or as"):
                raw.infer("tokenizer", inputs)


@pytest.mark.parametrize("tiny", [tiny_bert, tiny_llama, tiny_xlm_roberta])
def test_ids_of_any_text_are_taken_and_control_tokens_are_not(tiny: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder = PairEncoder.load(tiny(tmp_path / "checkpoint"))
    texts = [*STRANGE, "[PAD] [MASK]", "</s> <s> <unk>", "river bridge"]
    encoder.check_ids(encoder.document_ids([Document(text, text) for text in texts]))
    for name in (encoder.config.start_token, encoder.config.end_token):
        control = np.array([encoder._control_id(str(name))], dtype=np.int32)
        with pytest.raises(EncodingError, match="document 1 holds the id"):
            encoder.check_ids(DocumentIds(control, np.array([0, 1])))


def test_documents_that_come_again_are_not_tokenised_again(server: Server, reference: Reference) -> None:
    candidates = [Document(f"harbor {number}", "winter " * number) for number in range(50)]
    hits, lookups = (server.metrics(f"disranker_document_cache_{name}") for name in ("hits", "lookups"))
    with RankingClient(server.url) as client:
        for query in ("garden", "bridge", "river " * 20, "garden"):  # each leaves other room for the document
            assert_equal(answer(client, query, candidates), reference(query, candidates))
    # There are two instances, each with its own cache: the third request finds its documents in one of them.
    _wait_until(lambda: server.metrics("disranker_document_cache_lookups") - lookups == 200)
    assert server.metrics("disranker_document_cache_hits") - hits >= 100
    assert server.metrics("disranker_document_cache_bytes") > 50 * 65


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLOW_ENGINE = '''
import time
from pathlib import Path

from openvino_engine import OpenVinoEngine

GATE = Path({gate!r})


class GatedEngine(OpenVinoEngine):
    """The engine, each call of which waits for a file; a row of it breaks it on demand."""

    def infer(self, rows):
        (GATE / "entered").touch()
        while not (GATE / "open").exists():
            time.sleep(0.01)
        if (GATE / "broken").exists():
            raise RuntimeError("the engine broke")
        return super().infer(rows)
'''


def _gated(served_repository: Path, root: Path, max_waiting_rows: int = 0) -> tuple[Path, Path]:
    """A copy of the repository whose engine waits for ``gate/open`` at each call, and the gate."""
    repository, gate = root / "model_repository", root / "gate"
    shutil.copytree(served_repository, repository)
    gate.mkdir()
    (repository / "student/gated_engine.py").write_text(SLOW_ENGINE.format(gate=str(gate)))
    model = repository / "student/1/model.py"
    source = model.read_text()
    changed = source.replace('("openvino_engine", "OpenVinoEngine")', '("gated_engine", "GatedEngine")')
    assert changed != source
    model.write_text(changed)
    path = repository / "student/configs/cpu.pbtxt"
    config = read_config(path)
    config.ClearField("model_warmup")  # it would wait at the gate
    config.parameters["max_waiting_rows"].string_value = str(max_waiting_rows)
    path.write_text(text_format.MessageToString(config))
    return repository, gate


def test_who_goes_first_who_fails_and_who_is_dropped(
    served_repository: Path, reference: Reference, tmp_path: Path
) -> None:
    repository, gate = _gated(served_repository, tmp_path)
    large, small = documents(1000, longest=60), documents(10, longest=60)
    order = list[str]()

    def ask(name: str, candidates: list[Document]) -> None:
        with RankingClient(server.url) as client:
            assert_equal(answer(client, "silver", candidates), reference("silver", candidates))
        order.append(name)

    with running(repository, tmp_path / "log") as server, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, "large", large)]
        _wait_until((gate / "entered").exists)
        answers.append(pool.submit(ask, "small", small))
        _wait_until(lambda: _requests(server, "student") == 2)
        _leave(server, [np.zeros((500, width), dtype=np.int32) for width in (256, 256, 256, 256, 16)])
        (gate / "open").touch()
        for future in answers:
            future.result()
        assert order == ["small", "large"]

        (gate / "broken").touch()
        with RankingClient(server.url) as client:
            with pytest.raises(RankingError, match="student: the engine broke"):
                client.score("silver", ["river"])
            (gate / "broken").unlink()
            assert_equal(answer(client, "silver", small), reference("silver", small))


def _leave(server: Server, rows: list[IntArray]) -> None:
    """Ask the student itself, and go."""
    inputs = [grpc.InferInput(name, array.shape, "INT32") for name, array in zip(INPUTS, rows, strict=True)]
    for one, array in zip(inputs, rows, strict=True):
        one.set_data_from_numpy(array)
    gone = threading.Event()
    with grpc.InferenceServerClient(server.url) as raw:
        before = _requests(server, "student")
        call = raw.async_infer("student", inputs, callback=lambda result, error: gone.set())
        _wait_until(lambda: _requests(server, "student") > before)
        call.cancel()
        assert gone.wait(PATIENCE_S)


def test_rows_that_nobody_packs_fail_alone(server: Server, reference: Reference) -> None:
    """Sent to the student itself: a pair without a slot, and a pool outside of its pair."""
    rows = [np.zeros((1, width), dtype=np.int32) for width in (256, 256, 256, 256, 16)]
    with grpc.InferenceServerClient(server.url) as raw:
        for segment, refused in ((99, True), (-1, True), (1, False)):
            rows[3][:] = segment
            rows[4][:] = 255 if segment == 1 else 0
            inputs = [grpc.InferInput(name, array.shape, "INT32") for name, array in zip(INPUTS, rows, strict=True)]
            for one, array in zip(inputs, rows, strict=True):
                one.set_data_from_numpy(array)
            if refused:
                with pytest.raises(grpc.InferenceServerException, match="a row has slots for 16 pairs"):
                    raw.infer("student", inputs)
            else:
                assert raw.infer("student", inputs).as_numpy("scores").shape == (1, 16)
    with RankingClient(server.url) as client:
        assert_equal(answer(client, "silver", documents(10)), reference("silver", documents(10)))


def _requests(server: Server, model: str) -> int:
    """Requests that the model has been given, whether they are answered or not."""
    with grpc.InferenceServerClient(server.url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def test_a_server_that_is_overloaded_says_so(served_repository: Path, tmp_path: Path) -> None:
    repository, gate = _gated(served_repository, tmp_path, max_waiting_rows=5)
    rows_per_call = json.loads((repository / "student/1/manifest.json").read_text())["rows_per_call"]
    many = [("market " * 260).encode()] * (rows_per_call + 4)  # a row each; four wait while the first call runs

    def ask(texts: list[bytes]) -> FloatArray:
        with grpc.InferenceServerClient(server.url) as raw:
            result = raw.infer("ranker", _inputs(QUERY=[b"q"], TITLES=texts, SUMMARIES=texts))
        scores: FloatArray = result.as_numpy("SCORES")
        return scores

    with running(repository, tmp_path / "log") as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, many)
        _wait_until((gate / "entered").exists)
        with pytest.raises(grpc.InferenceServerException, match="4 rows wait for the engine") as caught:
            ask(many[:2])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        (gate / "open").touch()
        assert len(first.result()) == len(many)
