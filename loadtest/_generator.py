"""Whether the load generator was itself the bottleneck. Then its figures describe it, not the server."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from loadtest._records import Generator, Point

PACKAGES = ("disranker", "locust", "tritonclient", "grpcio")
BUSY = 0.9  # of one core: the only thread that runs Python has hardly a moment left
LAG_SHARE = 0.1  # of the p99 latency
LAG_MS = 5.0  # timers are good to a millisecond; less than some of them is no bottleneck


class Watch:
    """The CPU time of this process from now on. Made and stopped by the thread that runs gevent's loop."""

    def __init__(self) -> None:
        self._before = (time.perf_counter(), time.thread_time(), time.process_time())

    def stop(self) -> Generator:
        wall, thread, process = (
            now - before
            for now, before in zip(
                (time.perf_counter(), time.thread_time(), time.process_time()), self._before, strict=True
            )
        )
        return Generator(thread / wall, process / wall)


def surroundings() -> Mapping[str, str]:
    """The generator's machine and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "load generator": f"{next(names, platform.machine())}, {cores} cores, {platform.system()} {platform.release()}",
        "its versions": f"{packages}, Python {platform.python_version()}",
    }


def with_limits(point: Point, bound: int | None) -> Point:
    """The point with the limits of the generator in words. ``bound`` is that of requests in flight (open loop)."""
    generator, limits = point.generator, []
    cores = len(os.sched_getaffinity(0))
    if generator.thread_cpu >= BUSY or generator.process_cpu >= BUSY * cores:
        limits.append(
            f"it used {generator.thread_cpu:.0%} of a core in its one thread of Python and {generator.process_cpu:.0%} "
            f"in all, of {cores} cores: run it elsewhere than the server, or with several processes"
        )
    lag, latency = point.lag_ms, point.latency_ms
    if lag and latency and lag.p99 > max(LAG_MS, LAG_SHARE * latency.p99):
        idle = generator.thread_cpu < BUSY / 2
        waited = ", though it had little to do: other processes took the cores" if idle else ""
        limits.append(f"requests left late by {lag.p99:.1f} ms at p99, of {latency.p99:.1f} ms of latency{waited}")
    if point.dropped:
        limits.append(
            f"{point.dropped} requests were not sent, as {bound} were in flight (--in-flight): "
            "the server is slower than the rate, or the bound too low"
        )
    return dataclasses.replace(point, generator=dataclasses.replace(generator, limits=tuple(limits)))
