"""The probe is asked about servers that are well, full, broken, slow, or no rankers at all."""

from __future__ import annotations

import re

import grpc
import numpy as np
import pytest

from client.probe import main
from tests.support.odd_servers import Held, OddServer, odd_server, refusing
from tests.support.servers import Server

CODE = grpc.StatusCode
BROKEN = (CODE.INTERNAL, "in ensemble 'ranker', Stub process 'student_0_0' is not healthy.")
FULL = (CODE.UNAVAILABLE, "in ensemble 'ranker', student: work of 0.50 s waits for the engine: retry in 0.25 s")
LATE = (CODE.UNAVAILABLE, "in ensemble 'ranker', student: past its deadline")
TRITONS_QUEUE = (CODE.UNAVAILABLE, "in ensemble 'ranker', Exceeds maximum queue size")
LOADING = (CODE.NOT_FOUND, "Request for unknown model: 'ranker' is not found")
OTHER_MODEL = (CODE.INVALID_ARGUMENT, "unexpected inference input 'TITLES' for model 'ranker'")
KEY = (CODE.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-key'")


def probed(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """The exit code, and the one line."""
    code = main(argv)
    (line,) = "".join(capsys.readouterr()).splitlines()
    return code, line


@pytest.mark.parametrize(
    ("reply", "ready", "alive", "words"),
    [
        (None, 0, 0, "scored in"),
        (FULL, 0, 0, "is overloaded: .* retry in 0.25 s"),
        (LATE, 0, 0, "is overloaded: .* past its deadline"),
        (TRITONS_QUEUE, 0, 0, "is overloaded"),
        (LOADING, 1, 0, "does not serve the model 'ranker'"),
        (BROKEN, 1, 1, "'student_0_0' is not healthy"),
        (OTHER_MODEL, 2, 2, "as a ranker"),
        (KEY, 2, 2, "refuses the authorisation"),
    ],
)
def test_ready_is_who_scores_or_sheds_and_alive_is_who_needs_no_restart(
    capsys: pytest.CaptureFixture[str], reply: tuple[grpc.StatusCode, str] | None, ready: int, alive: int, words: str
) -> None:
    service = OddServer(act=refusing(*reply)) if reply else OddServer()
    with odd_server(service) as url:
        for flags, expected, what in (((), ready, "ready"), (("--alive",), alive, "alive")):
            code, line = probed(capsys, url, "--deadline=60", *flags)
            assert code == expected and re.search(words, line)
            assert line.startswith({0: f"{what}: ", 1: f"not {what}: ", 2: "error: "}[code])


def test_scores_that_are_no_numbers_and_silence_are_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with odd_server(OddServer(lambda documents: np.full(documents, np.nan))) as url:
        assert probed(capsys, url, "--alive", "--deadline=60")[0] == 1
    with odd_server(OddServer(act=Held())) as url:
        code, line = probed(capsys, url, "--alive", "--deadline=0.2")
    assert code == 1 and "gave no answer within 0.2 s" in line
    code, line = probed(capsys, url, "--deadline=60")
    assert code == 1 and "no server answers at" in line


def test_a_person_waits_for_the_answer_and_no_longer_than_the_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    service = OddServer()
    with odd_server(service) as url:
        assert probed(capsys, url, "--deadline=7.5")[0] == 0
    (sent,) = service.parameters
    assert (sent["priority"], sent["timeout"]) == (1, 7_500_000)


def test_a_real_server_is_ready_and_its_age_is_told(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    assert main([server.url, "--deadline=60"]) == 0
    captured = capsys.readouterr()
    assert re.fullmatch(rf"ready: ranker at {server.url} scored in [\d.]+ ms\n", captured.out)
    assert captured.err.startswith("warning: Triton 2.51.0 has known security holes, closed in ")
    for model, words in (("student", "as a ranker"), ("scores", "as a ranker")):
        code, line = probed(capsys, server.url, "--deadline=60", "--model", model)
        assert code == 2 and words in line


@pytest.mark.parametrize("deadline", ["0", "-1", "nan", "1e300"])
def test_a_deadline_is_a_time(capsys: pytest.CaptureFixture[str], deadline: str) -> None:
    code, line = probed(capsys, "localhost:1", f"--deadline={deadline}")
    assert code == 2 and line.startswith("error: --deadline must be above 0 and at most 1e+09, not ")
