"""An admitted request is scored in time, a refused one would not have been, and a board shows it to other processes."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.student.runtime.admission import ANY_TIME, BATCH, CAUTION, PERSON, Speed, Urgency, Waiting
from model_repository.student.runtime.board import NUMBERS
from model_repository.student.runtime.pair_queue import SHARE_OF_OLDEST, PairQueue, Request
from tests import ROOT
from tests.support.pairs import pairs_of

SPEED = 10.0  # tokens/s
CALL = 8  # tokens
ARRIVALS = st.lists(  # (seconds after the one before, tokens, seconds that the caller waits)
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=30
)


def waiting(queue: PairQueue, now: float, speed: float = SPEED, call_s: float = 0.0) -> Waiting:
    return Waiting(speed, now if call_s else math.inf, call_s, 30.0, queue.rows())


def request_of(tokens: int, urgency: Urgency) -> Request:
    return Request(pairs_of([1] * tokens), lambda outcome: None, urgency)


@given(ARRIVALS)
def test_what_is_admitted_is_scored_in_time(arrivals: list[tuple[int, int, int]]) -> None:
    """In an engine of exactly the measured speed, but for the call that runs and the share of the oldest."""
    queue, now, came = PairQueue(), 0.0, 0.0
    for after, tokens, patience in [*arrivals, (10**6, 1, 1)]:
        came += after
        while queue.tokens and now < came:
            pieces = queue.take(CALL)
            now += sum(piece.tokens for piece in pieces) / SPEED
            for piece in pieces:
                if not piece.request.left:
                    late = now - piece.request.urgency.deadline
                    assert late <= CALL / SPEED + SHARE_OF_OLDEST * 20
        now = max(now, came)
        urgency = Urgency(deadline=came + patience)
        delay_s = waiting(queue, now).delay_s(tokens, urgency, now)
        if tokens / SPEED <= patience and not delay_s:  # an idle engine takes what it cannot make, too
            queue.add(request_of(tokens, urgency))


def test_of_two_that_wait_the_urgent_ones_and_the_smaller_ones_count() -> None:
    queue = PairQueue()
    for tokens, priority in ((50, PERSON), (500, PERSON), (10, BATCH)):
        queue.add(request_of(tokens, Urgency(priority)))
    waits = {(60, PERSON): 5, (600, PERSON): 55, (5, BATCH): 55, (60, BATCH): 56}
    for (tokens, priority), wait_s in waits.items():
        patience = tokens / SPEED + wait_s / CAUTION
        for less, delayed in ((0.01, True), (-0.01, False)):
            delay_s = waiting(queue, 0.0).delay_s(tokens, Urgency(priority, patience - less), 0.0)
            assert (delay_s > 0) is delayed and delay_s < 0.1


def test_a_request_leaves_their_deadlines_to_those_that_it_overtakes() -> None:
    queue = PairQueue()
    queue.add(request_of(100, Urgency(deadline=12.0)))  # 10 s of work
    small, urgent = Urgency(deadline=1000.0), Urgency(BATCH, 1000.0)
    assert not waiting(queue, 0.0).delay_s(10, small, 0.0)
    assert waiting(queue, 0.0).delay_s(30, small, 0.0) == 10.0, "when the other one has been scored"
    assert not waiting(queue, 5.0).delay_s(30, small, 5.0), "the other one is late without it"
    assert not waiting(queue, 0.0).delay_s(30, urgent, 0.0), "it does not overtake a person's"


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_an_engine_that_is_idle_or_was_not_measured_takes_all(tokens: int, more: int) -> None:
    queue = PairQueue()
    assert not waiting(queue, 0.0, speed=1e-3).delay_s(tokens, Urgency(deadline=1.0), 0.0)
    queue.add(request_of(1 + more, ANY_TIME))
    assert not waiting(queue, 0.0, speed=0.0).delay_s(tokens, Urgency(deadline=1.0), 0.0)


def test_a_call_that_does_not_end_is_waited_for_ever_longer() -> None:
    queue = PairQueue()
    hung = waiting(queue, 0.0, call_s=2.0)
    assert [hung.busy_s(now) for now in (0.0, 1.0, 2.0, 5.0, 100.0)] == [2.0, 1.0, 0.0, 3.0, 98.0]
    assert not hung.delay_s(10, ANY_TIME, 20.0)
    assert hung.delay_s(10, ANY_TIME, 40.0) == 8.0


def test_the_speed_is_that_of_full_calls_of_late_and_a_stall_passes() -> None:
    speed = Speed()
    speed.measure(1, 1.0, full=False)
    assert speed.tokens_per_s == 0.0
    for tokens, seconds, full, expected in (
        (100, 1.0, True, 100.0),
        (1, 1.0, False, 100.0),  # a small call says nothing
        (50, 0.25, False, 120.0),  # unless it was fast
    ):
        speed.measure(tokens, seconds, full)
        assert speed.tokens_per_s == pytest.approx(expected, rel=0.05)
    speed.measure(100, 3600.0, full=True)
    assert speed.tokens_per_s > 40
    for _ in range(60):
        speed.measure(100, 10.0, full=True)
    assert speed.tokens_per_s == pytest.approx(10.0, rel=0.05), "it is slower for good"


@given(st.lists(st.tuples(st.integers(1, 99), st.sampled_from([PERSON, BATCH]), st.floats(0, 1e9)), max_size=20))
def test_what_waits_comes_out_of_its_numbers(rows: list[tuple[float, float, float]]) -> None:
    given_ = Waiting(5.0, math.inf, 0.5, 30.0, rows)
    numbers = given_.numbers()
    assert Waiting.of(numbers) == given_
    assert Waiting.of(numbers[:-1] if rows else numbers) == replace(given_, requests=rows[:-1]), "cut short"


SHOWS = """
import sys
import numpy as np
from model_repository.student.runtime.board import Board
board, other = Board("student"), Board("teacher")
for line in sys.stdin:
    board.show(np.arange(float(line)))
    other.show(np.zeros(1))
    print("shown", flush=True)
"""
READS = """
import sys
from model_repository.student.runtime.board import Boards
boards = Boards("student")
for line in sys.stdin:
    boards.look()
    print([(len(numbers), numbers.sum()) for numbers in boards.read()], flush=True)
"""


def test_a_board_is_read_by_sisters_as_long_as_its_process_lives() -> None:
    shows, reads, reads_too = (_talking(code) for code in (SHOWS, READS, READS))
    try:
        assert [_told(reads, "look"), _told(reads_too, "look")] == ["[]", "[]"], "nothing was shown yet"
        for count in (5, 3, 10 * NUMBERS):
            assert _told(shows, str(count)) == "shown"
            shown = min(count, NUMBERS - 2)
            expected = f"[({shown}, {float(sum(range(shown)))})]"
            assert [_told(reads, "look"), _told(reads_too, "look")] == [expected, expected]
        shows.kill()
        shows.wait()
        assert [_told(reads, "look"), _told(reads_too, "look")] == ["[]", "[]"]
    finally:
        for process in (shows, reads, reads_too):
            process.kill()
            process.communicate()


def _talking(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def _told(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin and process.stdout
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()
