"""How many servers a traffic needs, what they cost and how much more they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from client import InvalidRequestError
from loadtest.capacity._queue import MOST_SERVERS, Goal, Queue, highest_rate

HOURS_A_MONTH = 730.0


@dataclass(frozen=True)
class Traffic:
    """``rate`` is the mean of requests a second, ``peak`` how many times that it is in the busiest minutes."""

    rate: float
    peak: float
    clients: int

    @property
    def busiest(self) -> float:
        return self.rate * self.peak


@dataclass(frozen=True)
class Moment:
    """A load, and the latency that callers see; ``within`` is the share of requests that hold the goal's limit."""

    name: str
    rate: float
    servers: int
    busy: float
    p50_ms: float
    p99_ms: float
    within: float


@dataclass(frozen=True)
class Plan:
    """Servers for a traffic and a goal.

    needed: servers at the peak, ``spare`` more may be lost
    headroom: how many times the peak all of them would take
    a_month: their cost, and ``a_million`` that of a million requests, in the currency of the price
    """

    needed: int
    spare: int
    a_server: float  # requests a second at which the goal still holds
    headroom: float
    a_month: float
    a_million: float
    moments: tuple[Moment, ...] = field(default=())

    @property
    def servers(self) -> int:
        return self.needed + self.spare


def plan(queue: Queue, traffic: Traffic, goal: Goal, spare: int, most_busy: float, price: float) -> Plan:
    """Raises InvalidRequestError where no number of servers holds the goal."""

    def takes(servers: int) -> float:
        return highest_rate(queue, servers, traffic.clients, goal, most_busy)

    if not takes(1):
        raise InvalidRequestError(
            f"{goal.share:g} of the requests within {goal.limit_ms:g} ms: an idle server is slower, so no number of "
            "them is enough"
        )
    needed = max(1, math.ceil(traffic.busiest / (most_busy * queue.saturation)))
    while needed < MOST_SERVERS and takes(needed) < traffic.busiest:
        needed += 1
    needed = max(needed, math.ceil(traffic.busiest / takes(needed) * needed))
    servers = needed + spare
    a_month = servers * price * HOURS_A_MONTH
    states = {"mean": (traffic.rate, servers), "peak": (traffic.busiest, servers)}
    if spare:
        states[f"peak, {spare} lost"] = (traffic.busiest, needed)
    return Plan(
        needed=needed,
        spare=spare,
        a_server=takes(needed) / needed,
        headroom=takes(servers) / traffic.busiest,
        a_month=a_month,
        a_million=1e6 * a_month / (traffic.rate * 3600 * HOURS_A_MONTH),
        moments=tuple(_moment(name, queue, traffic.clients, goal, *state) for name, state in states.items()),
    )


def _moment(name: str, queue: Queue, clients: int, goal: Goal, rate: float, servers: int) -> Moment:
    simulated = min(servers, MOST_SERVERS)
    latencies = queue.fleet(rate / servers * simulated, simulated, clients)
    p50, p99 = np.quantile(latencies, [0.5, 0.99])
    within = float(np.mean(latencies <= goal.limit_ms))
    return Moment(name, rate, servers, rate / servers / queue.saturation, float(p50), float(p99), within)
