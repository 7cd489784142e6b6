"""Keeps Triton running: started again when it dies, when one of its processes does, and when it hangs.

Triton is replaced as a whole. To reload the one model through Triton's model control was tried (2.51): idle it works;
under load it reported success, loaded nothing, and left requests without an answer. A Triton with a dead stub needs
half a minute to stop by itself, so it is killed; from then on its ports are closed, and nobody takes it for ready.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from client.connection import Connection
from embedded_triton.log import Log
from embedded_triton.processes import PREFIX, Stub, claim, clear, close_regions, guard, signal_name, sweep
from embedded_triton.watch import Canary, Watch, is_served

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = {*STOP, signal.SIGCHLD}
RESTARTS = "DISRANKER_RESTARTS"  # the tokenizer shows it in /metrics
LOOK_S = 0.2
STEADY_S = 60.0  # a Triton that served for so long did not die of its start
LONGEST_PAUSE_S = 30.0
MOST_STARTS = 5  # in a row that came to nothing
LOG_ENDS_S = 1.0  # after the last process that writes to it
GRACE_S = 5.0  # for a Triton that stops, beyond its own time limit


@dataclass(frozen=True)
class Launch:
    """How Triton is started, and where it then answers.

    addresses: host and port of each endpoint
    grpc: that endpoint as host:port, "" if it is off
    ranker: the ensemble that is asked for a score, "" for none
    hang_s: without an answer for so long it hangs; 0 never
    exit_s: how long Triton waits for requests under way when it stops
    verbose: whether all of Triton's log is shown
    loads: what is said when it starts
    serves: what is said when it is ready, after the time that it took
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    addresses: tuple[tuple[str, int], ...]
    grpc: str
    ranker: str
    hang_s: float
    exit_s: float
    verbose: bool
    loads: str
    serves: str


class End(NamedTuple):
    """How a Triton ended.

    code: its exit code, 128 and the signal's number if one killed it
    served_s: how long it was ready, None if it never was
    asked: whether it was told to stop
    log: its last lines
    """

    code: int
    why: str
    served_s: float | None
    asked: bool
    log: str


def supervise(launch: Launch) -> int:
    """The command's exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with claim():
        guard()
        try:
            return Supervisor(launch).run()
        finally:
            clear()


class Supervisor:
    """One Triton after the other."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._proven = threading.Event()
        self._in_a_row = 0  # deaths, each soon after the start
        self._unready = 0  # of them, of a Triton that was never ready
        self._restarts = 0

    def run(self) -> int:
        while True:
            end = Triton(self._launch, self._restarts, self._proven).wait()
            if self._is_last(end):
                return end.code
            self._count(end)
            if self._unready == MOST_STARTS:
                _say(f"error: Triton died at {MOST_STARTS} starts in a row, at last because {end.why}: {end.log}")
                return 1
            if self._stopped_in_pause(end.why):
                return 0

    def _is_last(self, end: End) -> bool:
        """Whether it was meant to end, or its first start failed, which is for whoever wrote its configuration."""
        failed_at_first = end.served_s is None and not self._restarts and end.code < 128
        return end.asked or end.code == 0 or failed_at_first

    def _count(self, end: End) -> None:
        self._restarts += 1
        self._in_a_row = self._in_a_row + 1 if (end.served_s or 0.0) < STEADY_S else 1
        self._unready = self._unready + 1 if end.served_s is None else 0

    def _stopped_in_pause(self, why: str) -> bool:
        """Wait before the next start, longer each time; true if a signal comes that ends the command."""
        pause_s = 0.0 if self._in_a_row == 1 else min(LONGEST_PAUSE_S, 2.0 ** min(self._in_a_row - 2, 10))
        _say(f"tritonserver: {why}; Triton is started again in {pause_s:g} s (restart {self._restarts})")
        return signal.sigtimedwait(STOP, pause_s) is not None


class Triton:
    """One Triton, from its start to its end."""

    def __init__(self, launch: Launch, restarts: int, proven: threading.Event) -> None:
        self._launch, self._proven = launch, proven
        self._log = Log(launch.verbose)
        self._begun = time.monotonic()
        self._pid = self._spawn(restarts)
        self._watch = Watch(self._pid, self._serves)
        self._canary: Canary | None = None
        self._status: int | None = None
        self._ready_at: float | None = None
        self._kill_at = math.inf
        self._why = ""

    def wait(self) -> End:
        """Wait until it has ended. The signals that end the command are handed on."""
        while self._status is None:
            received = signal.sigtimedwait(SIGNALS, LOOK_S)
            if received and received.si_signo in STOP:
                self._stop()
            self._reap()
            if self._status is None:
                self._look()
        if self._canary:
            self._canary.end()
        sweep(PREFIX)
        self._log.join(LOG_ENDS_S)
        return self._end(os.waitstatus_to_exitcode(self._status))

    def _spawn(self, restarts: int) -> int:
        _say(self._launch.loads)
        command, environment = self._launch.command, {**self._launch.environment, RESTARTS: str(restarts)}
        log = [(os.POSIX_SPAWN_DUP2, self._log.sink, sys.stderr.fileno())]
        pid = os.posix_spawn(
            command[0], command, environment, file_actions=log, setpgroup=0, setsigmask=(), setsigdef=STOP
        )
        os.close(self._log.sink)
        self._log.start()
        return pid

    def _stop(self) -> None:
        under_way_s = 0.0 if self._ready_at is None else self._launch.exit_s
        self._kill_at = min(self._kill_at, time.monotonic() + under_way_s + GRACE_S)
        os.kill(self._pid, signal.SIGTERM)  # whatever came: Triton did not always end on SIGINT

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._pid:
                    self._status = ended[1]

    def _look(self) -> None:
        close_regions()
        self._watch.meet()
        if time.monotonic() > self._kill_at:
            self._kill("it did not stop in time")
        elif self._ready_at is not None:
            if fault := self._watch.look(self._asked) or (self._canary and self._canary.fault):
                self._kill(fault)
        elif all(map(_listens, self._launch.addresses)):
            self._ready_at = time.monotonic()
            _say(f"ready    after {self._ready_at - self._begun:.1f} s\n{self._launch.serves}")
            self._ask_now_and_then()

    def _ask_now_and_then(self) -> None:
        launch = self._launch
        if launch.grpc and launch.ranker and launch.hang_s:
            self._canary = Canary(Connection((launch.grpc,), launch.ranker, timeout_s=launch.hang_s), self._proven)
            self._canary.start()

    def _serves(self, stub: Stub) -> bool:
        return not self._launch.grpc or is_served(self._launch.grpc, stub)

    @property
    def _asked(self) -> bool:
        return self._kill_at < math.inf

    def _kill(self, why: str) -> None:
        self._why = self._why or why
        os.kill(self._pid, signal.SIGKILL)

    def _end(self, exit_code: int) -> End:
        code = exit_code if exit_code >= 0 else 128 - exit_code
        ended = f"Triton ended with {code}" if exit_code >= 0 else f"{signal_name(-exit_code)} ended Triton"
        served_s = None if self._ready_at is None else time.monotonic() - self._ready_at
        if self._asked and (self._why or exit_code == -signal.SIGTERM):  # killed since it hung, or before it handles it
            code = 0
        return End(code, self._why or ended, served_s, self._asked, self._log.last())


def _listens(address: tuple[str, int]) -> bool:
    """Triton opens its ports when the models are loaded."""
    try:
        socket.create_connection(address, timeout=LOOK_S).close()
    except OSError:
        return False
    return True


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
