"""Finds what is wrong with a Triton that runs: processes that ended or were stopped, answers that do not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from client.connection import Connection
from client.errors import RankingError, status_of
from client.probe import Verdict, probe
from embedded_triton.processes import State, Stub, children, signal_name, state_of, stub_of

MEET_S = 1.0  # a model takes longer to load
ASK_S = 1.0  # for what Triton answers at once
# Triton takes a stub for dead that is stopped for about a second, and never has it back; a debugger's stop is another.
STOPPED_S = 0.5
KILLED_S = 0.1  # once seen twice: a stub that Triton ends itself is gone by then
ENDED_S = 2.0  # a stub that was told to end, does, and Triton reaps it


class Watch:
    """Triton's processes. Triton 2.51 does not replace a stub, and one that is dead breaks the server for good.

    ``serves`` tells whether Triton takes requests for a stub's model. One that dies while its model is loaded or
    unloaded is Triton's own business: it goes on with the version that it has.
    """

    def __init__(self, triton: int, serves: Callable[[Stub], bool]) -> None:
        self._triton, self._serves = triton, serves
        self._stubs = dict[int, Stub]()
        self._meets_at = 0.0
        self._since = dict[int, float]()  # when what is wrong with a process was seen first

    def meet(self) -> None:
        """Look for new stubs, once a second at most: Triton has some sixty threads, each with its own children."""
        if time.monotonic() >= self._meets_at:
            self._meets_at = time.monotonic() + MEET_S
            self._stubs |= {pid: stub for pid in children(self._triton) if (stub := stub_of(pid))}

    def look(self, stopping: bool) -> str:
        """Say what is wrong, "" for nothing; called several times a second. Stubs of a ``stopping`` Triton may end."""
        states = {pid: state for pid in (self._triton, *self._stubs) if (state := state_of(pid))}
        # Triton reaps a stub that it has ended itself; one that died stays a zombie.
        self._stubs = {pid: stub for pid, stub in self._stubs.items() if pid in states}
        self._since = {pid: since for pid, since in self._since.items() if pid in states}
        for pid, state in states.items():
            if not self._lasts(pid, state, stopping):
                continue
            stub = self._stubs.get(pid)
            if stub is None:
                return "Triton was stopped"
            if not self._replaced(stub, states) and (stopping or self._serves(stub)):
                return f"the process {stub.instance} {_words(state)}"
            if state.letter == "Z":
                del self._stubs[pid]  # its model was not served, so it never will be by this one
        return ""

    def _lasts(self, pid: int, state: State, stopping: bool) -> bool:
        patience_s = _patience_s(state)
        if patience_s is None or (stopping and patience_s == ENDED_S):
            self._since.pop(pid, None)
            return False
        return time.monotonic() - self._since.setdefault(pid, time.monotonic()) >= patience_s

    def _replaced(self, stub: Stub, states: dict[int, State]) -> bool:
        return any(self._stubs.get(pid) == stub and _patience_s(state) is None for pid, state in states.items())


def _patience_s(state: State) -> float | None:
    """Seconds for which a process may be like this; None for one with which nothing is wrong."""
    if state.letter == "T":
        return STOPPED_S
    if state.letter == "Z":
        return KILLED_S if state.status else ENDED_S
    return None


def _words(state: State) -> str:
    if state.letter == "T":
        return "was stopped"
    number = state.status & 0x7F
    return f"was killed by {signal_name(number)}" if number else f"ended with {state.status >> 8}"


def is_served(url: str, stub: Stub) -> bool:
    """Whether Triton takes requests for the stub's model; where it cannot be asked, yes."""
    with suppress(InferenceServerException), closing(grpc.InferenceServerClient(**Connection().channel(url))) as client:
        return bool(client.is_model_ready(stub.model, stub.version, client_timeout=ASK_S))
    return True


class Canary(threading.Thread):
    """Asks for a score every half of ``connection.timeout_s``, and says in ``fault`` that the server hangs.

    It hangs if the canary has no answer within the limit, and in all that time nobody else had one: a server that is
    full refuses, or answers others. Nothing is said before the first answer (``proven``, which outlives a Triton),
    since the canary may lack a key.
    """

    def __init__(self, connection: Connection, proven: threading.Event) -> None:
        super().__init__(name="canary", daemon=True)
        self._connection, self._proven = connection, proven
        self._ended = threading.Event()
        self.fault = ""

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self.fault and not self._ended.wait(self._connection.timeout_s / 2):
            with suppress(InferenceServerException, RankingError):  # what cannot be asked proves nothing
                self.fault = self._ask()

    def _ask(self) -> str:
        before = self._answered()
        answer = probe(self._connection)
        if answer.verdict is Verdict.SCORED:
            self._proven.set()
        elif not self._proven.is_set():
            return ""
        elif answer.verdict is Verdict.BROKEN and "is not healthy" in answer.words:
            return answer.words
        elif answer.verdict is Verdict.SILENT and self._answered() in (None, before):
            return f"{self._connection.model} has answered nobody for {self._connection.timeout_s:g} s"
        return ""

    def _answered(self) -> int | None:
        """Requests that the ranker has answered so far; None where even that question hangs."""
        with closing(grpc.InferenceServerClient(**self._connection.channel(self._connection.servers[0]))) as client:
            try:
                told = client.get_inference_statistics(self._connection.model, client_timeout=ASK_S)
            except InferenceServerException as error:
                if status_of(error) != "DEADLINE_EXCEEDED":
                    raise
                return None
        return sum(int(model.inference_stats.success.count) for model in told.model_stats)
