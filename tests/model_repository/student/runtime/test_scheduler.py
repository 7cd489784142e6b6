"""Every pair is scored once and every request answered once, fairly, whatever comes and whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_repository.student.runtime.admission import (
    ANY_TIME,
    BATCH,
    LARGER,
    MUCH_LARGER,
    PERSON,
    OverloadedError,
    Urgency,
)
from model_repository.student.runtime.packing import FlatPairs, FloatArray
from model_repository.student.runtime.pair_queue import SHARE_OF_OLDEST, PairQueue, Request
from model_repository.student.runtime.scheduler import (
    PastDeadlineError,
    Scheduler,
    StoppedError,
)
from tests.support.pairs import pairs_of
from tests.support.waiting import PATIENCE_S, eventually

ARRIVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40)), min_size=1, max_size=15)  # (after pairs, pairs)


def double(pairs: FlatPairs) -> FloatArray:
    """A pair's first token doubled."""
    scores: FloatArray = (pairs.token_ids[np.cumsum(pairs.lengths) - pairs.lengths] * 2).astype(np.float32)
    return scores


@dataclass(eq=False)
class Asked:
    """A request of pairs of one token, numbered from ``first``, and its answer once it is there."""

    first: int
    size: int
    urgency: Urgency = ANY_TIME
    outcomes: list[FloatArray | Exception] = field(default_factory=list)
    answered: threading.Event = field(default_factory=threading.Event)

    def request(self) -> Request:
        numbers, ones = np.arange(self.first, self.first + self.size, dtype=np.int32), np.ones(self.size, np.int64)
        return Request(FlatPairs(numbers, ones, ones, np.zeros(self.size, np.bool_)), self._answer, self.urgency)

    def _answer(self, outcome: FloatArray | Exception) -> None:
        self.outcomes.append(outcome)
        self.answered.set()

    def outcome(self) -> FloatArray | Exception:
        assert self.answered.wait(PATIENCE_S)
        (outcome,) = self.outcomes
        return outcome

    def check(self) -> None:
        numbers = np.arange(self.first, self.first + self.size)
        outcome = self.outcome()
        assert not isinstance(outcome, Exception)
        np.testing.assert_array_equal(outcome, numbers * 2)


class Engine:
    """``double``, held at its gate; remembers the pairs of each call, and fails at the pair ``broken``."""

    def __init__(self, broken: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self._broken = broken

    def __call__(self, pairs: FlatPairs) -> FloatArray:
        self.calls.append(pairs.token_ids.tolist())
        self.entered.release()
        assert self.gate.acquire(timeout=PATIENCE_S)
        if self._broken in self.calls[-1]:
            raise RuntimeError("the engine broke")
        return double(pairs)

    def open(self) -> None:
        self.gate.release(10_000)


@contextmanager
def scheduling(
    score: Callable[[FlatPairs], FloatArray], tokens_per_call: int = 4, **settings: Any
) -> Iterator[Scheduler]:
    scheduler = Scheduler(score, tokens_per_call, **settings)
    try:
        yield scheduler
    finally:
        if isinstance(score, Engine):
            score.open()
        scheduler.close()


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(9, 40),
)
def test_pairs_of_any_length_get_their_scores_in_the_callers_order(
    requests: list[list[int]], tokens_per_call: int
) -> None:
    """Each call has at most its tokens, and each request its own first tokens back."""
    tokens: list[int] = []
    outcomes: list[Queue[FloatArray | Exception]] = [Queue() for _ in requests]

    def score(pairs: FlatPairs) -> FloatArray:
        tokens.append(len(pairs.token_ids))
        return double(pairs)

    with scheduling(score, tokens_per_call) as scheduler:
        for lengths, outcome in zip(requests, outcomes, strict=True):
            scheduler.submit(Request(pairs_of(lengths), outcome.put))
        for lengths, outcome in zip(requests, outcomes, strict=True):
            scores = outcome.get(timeout=PATIENCE_S)
            assert not isinstance(scores, Exception)
            np.testing.assert_array_equal(scores, double(pairs_of(lengths)))
            assert outcome.empty(), "answered once"
    assert sum(tokens) == sum(map(sum, requests))
    assert max(tokens) <= tokens_per_call


def test_a_call_is_filled_from_several_requests() -> None:
    engine = Engine()
    with scheduling(engine) as scheduler:
        asked = [Asked(0, 1), Asked(10, 1), Asked(20, 2), Asked(30, 3)]
        scheduler.submit(asked[0].request())
        assert engine.entered.acquire(timeout=PATIENCE_S)  # the engine works: the others have to wait
        for one in asked[1:]:
            scheduler.submit(one.request())
        engine.open()
        for one in asked:
            one.check()
    assert engine.calls == [[0], [10, 20, 21, 30], [31, 32]]


def test_a_small_request_overtakes_a_large_one() -> None:
    engine = Engine()
    with scheduling(engine) as scheduler:
        large, small = Asked(0, 40), Asked(1000, 2)
        scheduler.submit(large.request())
        assert engine.entered.acquire(timeout=PATIENCE_S)
        scheduler.submit(small.request())
        engine.gate.release(2)  # the call that runs, and one more
        small.check()
        assert not large.answered.is_set()
        engine.open()
        large.check()
    assert {1000, 1001} < {*engine.calls[1]}, "the call is filled with rows of the large one"
    assert len(engine.calls[1]) == 4


@pytest.mark.parametrize(("waits", "comes"), [((40, PERSON), (4, PERSON)), ((2, BATCH), (9, PERSON))])
def test_what_goes_first_does_not_starve_the_others(waits: tuple[int, int], comes: tuple[int, int]) -> None:
    """Whenever a call has been filled the next small or urgent request is there."""
    queue = PairQueue()
    starved = Asked(0, waits[0], Urgency(waits[1])).request()
    queue.add(starved)
    served = 0
    while starved.taken < starved.size:
        queue.add(Asked(1000, comes[0], Urgency(comes[1])).request())
        served += sum(piece.tokens for piece in queue.take(4))
        assert served <= starved.size / SHARE_OF_OLDEST + 4


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from([PERSON, BATCH])), min_size=2, max_size=7))
@example([(4, PERSON), (3, PERSON), (2, PERSON)])
@example([(20, PERSON), (11, PERSON), (6, PERSON), (4, PERSON)])
def test_persons_go_first_much_smaller_ones_overtake_and_the_others_keep_their_turn(
    requests: list[tuple[int, int]],
) -> None:
    queue = PairQueue()
    added = [Asked(0, size, Urgency(priority)).request() for size, priority in requests]
    for request in added:
        queue.add(request)
    ended = list[Request]()
    while queue.tokens:
        queue._owed = -SHARE_OF_OLDEST  # without the share of the oldest
        ended += [piece.request for piece in queue.take(1) if not piece.request.left]
    assert len(ended) == len(added)
    assert sorted(ended, key=lambda request: request.urgency.priority) == ended
    for number, later in enumerate(added):
        earlier = [one for one in added[:number] if one.urgency.priority == later.urgency.priority]
        overtaken = [one for one in earlier if ended.index(one) > ended.index(later)]
        assert {*overtaken} >= {one for one in earlier if one.size >= MUCH_LARGER * later.size}
        if all(one.size >= LARGER * later.size for one in earlier):
            assert overtaken == earlier
        if all(one.size < MUCH_LARGER * later.size for one in earlier):
            assert all(one.size >= LARGER * later.size for one in overtaken)


def test_a_chain_of_ever_smaller_requests_does_not_hold_up_a_small_one() -> None:
    """Each is more than half of the one before. The last waits for the one like it and for the share of the oldest."""
    queue, spent = PairQueue(), 0
    for documents in (1000, 510, 260, 135, 70, 36, 19, 10):
        last = Asked(0, documents).request()
        queue.add(last)
    while last.left:
        spent += sum(piece.tokens for piece in queue.take(10))
    assert spent <= 19 + 10 + 2 * 10


def test_equal_requests_of_callers_in_a_loop_wait_alike() -> None:
    """Ten documents each, of about 60 to 140 tokens; a caller who has an answer asks again."""
    draw, queue, clock, waited = np.random.default_rng(0), PairQueue(), 0, list[int]()
    began = dict[Request, int]()

    def ask() -> None:
        request = Asked(0, int(draw.integers(600, 1400))).request()
        began[request] = clock
        queue.add(request)

    for _ in range(16):
        ask()
    while len(waited) < 400:
        pieces = queue.take(1024)
        clock += sum(piece.tokens for piece in pieces)
        for request in {piece.request for piece in pieces if not piece.request.left}:
            waited.append(clock - began.pop(request))
            ask()
    middle, late = np.percentile(waited[16:], [50, 95])
    assert late <= 1.5 * middle, "twice is promised"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 9))
def test_a_call_is_as_full_as_it_can_be(sizes: list[int], tokens_per_call: int) -> None:
    queue = PairQueue()
    for size in sizes:
        queue.add(Asked(0, size).request())
    left = sum(sizes)
    while left:
        taken = sum(piece.stop - piece.start for piece in queue.take(tokens_per_call))
        assert taken == min(tokens_per_call, left)
        left -= taken
        assert queue.tokens == left


@given(ARRIVALS, st.integers(1, 8))
def test_nobody_waits_longer_than_for_their_share(arrivals: list[tuple[int, int]], tokens_per_call: int) -> None:
    """In their turn all get the share of the oldest at least, whoever comes later."""
    times = np.cumsum([after for after, _ in arrivals]).tolist()
    sizes = [size for _, size in arrivals]
    ended = _ends(times, sizes, tokens_per_call)
    for number, (came, end) in enumerate(zip(times, ended, strict=True)):
        latest = max(ended[:number], default=0)  # when all who came before have gone, this is the oldest
        assert end <= max(latest, came) + sizes[number] / SHARE_OF_OLDEST + 2 * tokens_per_call


def _ends(times: list[int], sizes: list[int], tokens_per_call: int) -> list[float]:
    """When each request ends, in an engine that scores a row in a unit of time."""
    queue, clock, coming = PairQueue(), 0, 0
    requests = [Asked(0, size).request() for size in sizes]
    ended = [0.0] * len(sizes)
    while coming < len(sizes) or queue.tokens:
        while coming < len(sizes) and times[coming] <= clock:
            queue.add(requests[coming])
            coming += 1
        pieces = queue.take(tokens_per_call)
        clock = clock + sum(piece.stop - piece.start for piece in pieces) if pieces else times[coming]
        for piece in pieces:
            if piece.stop == piece.request.size:
                ended[requests.index(piece.request)] = clock
    return ended


def test_an_engines_error_fails_those_in_its_call_and_no_others() -> None:
    engine = Engine(broken=11)
    with scheduling(engine) as scheduler:
        before, broken, beside, after = Asked(0, 1), Asked(10, 3), Asked(20, 9), Asked(40, 2)
        scheduler.submit(before.request())
        assert engine.entered.acquire(timeout=PATIENCE_S)
        scheduler.submit(broken.request())
        scheduler.submit(beside.request())  # its first row shares the call
        engine.gate.release(2)
        for one in (broken, beside):
            assert str(one.outcome()) == "the engine broke"
        engine.open()
        scheduler.submit(after.request())
        before.check()
        after.check()
    assert engine.calls == [[0], [10, 11, 12, 20], [40, 41]], "rows of failed requests are not scored"


def test_closing_fails_what_waits_and_ends_the_threads() -> None:
    engine = Engine()
    before = {*threading.enumerate()}
    with scheduling(engine) as scheduler:
        scored, part, waiting = Asked(0, 4), Asked(10, 8), Asked(30, 2)
        scheduler.submit(scored.request())
        assert engine.entered.acquire(timeout=PATIENCE_S)
        scheduler.submit(part.request())
        scheduler.submit(waiting.request())
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        with pytest.raises(StoppedError):
            eventually(lambda: scheduler.submit(Asked(1000, 1).request()))
        engine.open()
        closing.join(PATIENCE_S)
        scored.check()
        assert isinstance(part.outcome(), StoppedError)
        assert isinstance(waiting.outcome(), StoppedError)
    assert engine.calls == [[0, 1, 2, 3]]
    assert {*threading.enumerate()} <= before


class Clock:
    """Seconds, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedEngine(Engine):
    """A token a second."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def __call__(self, pairs: FlatPairs) -> FloatArray:
        scores = super().__call__(pairs)
        self._clock.now += len(pairs.token_ids)
        return scores


def test_what_cannot_be_scored_in_time_is_refused_and_what_is_late_is_not_scored() -> None:
    clock = Clock()
    engine = TimedEngine(clock)
    with scheduling(engine, longest_s=30.0, clock=clock) as scheduler:
        first, running, waiting = Asked(0, 4), Asked(10, 4), Asked(20, 20)
        engine.gate.release()
        scheduler.submit(first.request())
        first.check()
        scheduler.submit(running.request())
        for _ in range(2):
            assert engine.entered.acquire(timeout=PATIENCE_S)
        scheduler.submit(waiting.request())
        wanted = Asked(50, 30, Urgency(deadline=clock.now + 40))  # 24 s of work wait, and it has 30 itself
        with pytest.raises(OverloadedError, match=r"24\.00 s waits for the engine: retry in 16\.50 s"):
            scheduler.submit(wanted.request())
        with pytest.raises(PastDeadlineError, match="past its deadline"):
            scheduler.submit(Asked(50, 1, Urgency(deadline=clock.now)).request())
        scheduler.submit(Asked(100, 10).request())
        with pytest.raises(OverloadedError, match="retry in"):
            scheduler.submit(Asked(50, 40).request())  # it would have to wait for 34 s
        late = Asked(200, 6, Urgency(BATCH, clock.now + 200))
        scheduler.submit(late.request())
        clock.now += 200
        engine.open()
        waiting.check()
        assert isinstance(late.outcome(), PastDeadlineError)
        again = Asked(50, 30, Urgency(deadline=clock.now + 400))
        scheduler.submit(again.request())
        again.check()
    assert (scheduler.refused, scheduler.dropped) == (2, 2)
    assert not {*range(200, 206)} & {pair for call in engine.calls for pair in call}


def test_a_requests_time_goes_into_its_parts() -> None:
    """Calls of 4 s, of which the engine has 3."""
    clock = Clock()
    engine = TimedEngine(clock)
    with scheduling(engine, clock=clock, engine_s=lambda: 3.0) as scheduler:
        asked = Asked(0, 4), Asked(10, 6), Asked(20, 2)
        requests = [one.request() for one in asked]
        scheduler.submit(requests[0])
        assert engine.entered.acquire(timeout=PATIENCE_S)
        for request in requests[1:]:
            scheduler.submit(request)
        engine.open()
        for one in asked:
            one.check()
    parts = [request.times.parts_s(came=99.5, answered=113.0) for request in requests]
    # The second is the oldest when the first has gone, and has a token of the call that the third is in.
    assert parts == [(0.5, 0.0, 1.0, 3.0, 9.0), (0.5, 4.0, 2.0, 6.0, 1.0), (0.5, 4.0, 1.0, 3.0, 5.0)]
    assert (scheduler.calls, scheduler.tokens, scheduler.engine_s) == (3, 12, 9.0)
