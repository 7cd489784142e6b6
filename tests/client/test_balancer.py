"""Which server is taken, and how often: for every course of events that a client may meet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import (
    AuthenticationError,
    InvalidAnswerError,
    InvalidRequestError,
    ModelNotReadyError,
    RankingError,
    RequestTimeoutError,
    ServerError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from client.attempts import FIRST_RETRIES, MOST_RETRIES, RETRY_SHARE, Attempts, Deadline, RetryBudget, pause_s
from client.balancer import LAST_PROBE_S, LONGEST_ASIDE_S, Balancer
from client.latencies import ENOUGH, Latencies

FAILURES: list[RankingError] = [
    *(kind("") for kind in (InvalidRequestError, AuthenticationError, InvalidAnswerError, RequestTimeoutError)),
    *(kind("") for kind in (ServerError, ServerUnavailableError, ModelNotReadyError)),
    *(ServerOverloadedError("", retry_after_s=wait) for wait in (0.0, 0.25, 1e9)),
]
BROKEN = [failure for failure in FAILURES if failure.fault in ("broken", "late")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Call:
    """A request that may be under way at a server."""

    attempts: Attempts
    documents: int
    server: int = -1
    servers: list[int] = field(default_factory=list)


class Client:
    """Does with answers what a fleet does, without servers and waiting, and checks what must hold at every step."""

    def __init__(self, servers: int, most: int) -> None:
        self.clock, self.budget, self.most, self.calls = Clock(), RetryBudget(), most, list[Call]()
        self.balancer = Balancer([f"s{number}" for number in range(servers)], self.clock)
        self.begun = 0

    def begin(self, documents: int) -> None:
        self.begun += 1
        attempts = Attempts(self.balancer, self.budget, documents, self.most, Deadline.after(1e6))
        self._attempt(Call(attempts, documents))

    def end(self, number: int, failure: RankingError | None) -> None:
        """End one of the requests under way."""
        if not self.calls:
            return
        call = self.calls.pop(number % len(self.calls))
        if failure is None:
            self.balancer.answered(call.server)
        else:
            call.attempts.failed(call.server, failure)
        self.balancer.give_back(call.server, call.documents)
        if failure is not None:
            self._attempt(call)

    def probe(self, failure: RankingError | None) -> None:
        for server in self.balancer.to_probe(but=-1):
            if failure is None:
                self.balancer.answered(server)
            else:
                self.balancer.failed(server, failure)

    def _attempt(self, call: Call) -> None:
        if call.attempts.wait_s() is None:
            assert call.servers, "no attempt at all"
            return
        aside = [server.aside for server in self.balancer.health()]
        call.server = call.attempts.take()
        others = [not aside[other] for other in range(len(aside)) if other not in call.servers]
        assert not aside[call.server] or not any(others), "a server aside was taken while another was free"
        assert call.server not in call.servers or len(set(call.servers)) == len(aside), "others were not tried"
        call.servers.append(call.server)
        assert len(call.servers) <= self.most
        self.calls.append(call)

    def check(self) -> None:
        loads = [0] * len(self.balancer.names)
        for call in self.calls:
            loads[call.server] += call.documents
        assert [server.load for server in self.balancer.health()] == loads
        assert self.budget.spent <= FIRST_RETRIES + RETRY_SHARE * self.begun


STEPS = st.one_of(
    st.tuples(st.just("begin"), st.integers(1, 1000)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from([None, *FAILURES])),
    st.tuples(st.just("probe"), st.sampled_from([None, *FAILURES])),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 20.0])),
)


@given(st.integers(1, 4), st.integers(1, 4), st.lists(STEPS, max_size=60))
def test_whatever_happens(servers: int, most: int, steps: list[tuple[str, object]]) -> None:
    client = Client(servers, most)
    for name, *values in steps:
        if name == "wait":
            client.clock.now += values[0]  # type: ignore[operator]
        else:
            getattr(client, name)(*values)
        client.check()
    while client.calls:
        client.end(0, None)
    client.clock.now += max(LONGEST_ASIDE_S, LAST_PROBE_S) + 1
    for _ in range(2):  # all are well now: a call finds that out, for the others than its own
        server = client.balancer.take(1, set())
        for probed in [*client.balancer.to_probe(but=server), server]:
            client.balancer.answered(probed)
        client.balancer.give_back(server, 1)
    assert {client.balancer.take(1, set()) for _ in range(servers)} == {*range(servers)}


@pytest.mark.parametrize("failure", BROKEN, ids=lambda failure: type(failure).__name__)
def test_a_broken_server_is_asked_at_growing_pauses_until_it_answers(failure: RankingError) -> None:
    clock = Clock()
    balancer = Balancer("ab", clock)
    balancer.failed(0, failure)
    probes = list[float]()
    for _ in range(2000):
        assert balancer.take(1, set()) == 1
        if balancer.to_probe(but=1):
            probes.append(clock.now)
            balancer.failed(0, failure)
        clock.now += 0.1
    pauses = [later - before for before, later in itertools.pairwise(probes)]
    assert probes[0] <= 0.6 and pauses[0] <= 1.1
    assert all(before <= later + 0.15 for before, later in itertools.pairwise(pauses))
    assert LAST_PROBE_S <= pauses[-1] <= LAST_PROBE_S + 0.2
    balancer.answered(0)
    assert balancer.take(1, set()) == 0
    balancer.failed(0, failure)  # the pauses begin anew
    clock.now += 0.6
    assert balancer.to_probe(but=1) == [0]


def test_the_least_loaded_server_is_taken() -> None:
    balancer = Balancer("abc")
    assert [balancer.take(10, set()) for _ in range(3)] == [0, 1, 2]
    balancer.give_back(1, 10)
    assert balancer.take(1, set()) == 1
    assert balancer.take(1, set()) == 1  # 1 under way is less than 10
    assert balancer.take(1, {1}) in (0, 2)
    assert balancer.take_free(1, {0, 2}) == 1
    assert balancer.take_free(1, {0, 1, 2}) is None
    balancer.failed(1, ServerError(""))
    assert balancer.take(1, set()) in (0, 2)
    assert balancer.take_free(1, {0, 2}) is None


def test_retries_are_saved_for_the_moment_when_a_busy_server_breaks() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(10_000)) == budget.spent == MOST_RETRIES


def test_pauses_grow_to_an_end() -> None:
    assert all(0 <= pause_s(attempt) <= min(2.0, 0.1 * 2 ** min(attempt, 10)) for attempt in (*range(20), 10**6))


def test_a_quantile_is_that_of_requests_of_like_size() -> None:
    latencies = Latencies()
    for number in range(ENOUGH):
        assert latencies.quantile(100, 0.5) is None
        latencies.add(100, number / ENOUGH)
        latencies.add(1000, 7.0)
    assert [latencies.quantile(size, 0.5) for size in (64, 100, 127, 1000, 1)] == [0.5, 0.5, 0.5, 7.0, None]


def test_a_slow_server_gets_what_the_others_would_take_as_long_for_until_it_is_forgotten() -> None:
    clock = Clock()
    balancer = Balancer(["a", "b", "c"], clock)
    for _ in range(20):
        balancer.took(0, 5.0)
        balancer.took(1, 1.5)  # as other work of the machine may do
    taken = [balancer.take(10, set()) for _ in range(22)]
    assert (taken.count(0), taken.count(1), taken.count(2)) == (2, 10, 10), "a fifth of the others' load"
    for server in taken:
        balancer.give_back(server, 10)
    clock.now += 60.0
    assert {balancer.take(10, set()) for _ in range(3)} == {0, 1, 2}
