"""By what a request is found again in answers, logs, traces and at the ranking server: its id, its trace, its key."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from client.wire import REQUEST_ID

GONE = 499  # nginx's code for a client that did not wait
IDS = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
TRACE, TRACE_STATE = "traceparent", "tracestate"  # https://www.w3.org/TR/trace-context/
TRACES = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
STATES = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass
class Asked:
    """The request that is being worked on.

    id: as the caller gave it in X-Request-Id, if that is printable and not long, or a new one
    trace: what it gave of the trace that it is part of, as headers; {} if that is malformed
    key: the name of the key that it came with
    code: the status of its answer, once that has begun
    """

    id: str
    trace: dict[str, str]
    key: str = ""
    code: int = GONE

    @classmethod
    def by(cls, headers: Mapping[str, str]) -> Asked:
        given, parent, state = (headers.get(name, "") for name in (REQUEST_ID, TRACE, TRACE_STATE))
        trace = {TRACE: parent} if TRACES.fullmatch(parent) else {}
        if trace and STATES.fullmatch(state):
            trace[TRACE_STATE] = state
        return cls(given if IDS.fullmatch(given) else uuid.uuid4().hex, trace)

    @property
    def metadata(self) -> dict[str, str]:
        """For the ranking server."""
        return {REQUEST_ID: self.id, **self.trace}

    def told(self) -> dict[str, str]:
        """For the log."""
        found = TRACES.fullmatch(self.trace.get(TRACE, ""))
        told = {"request_id": self.id, "trace_id": found[1] if found else "", "key": self.key}
        return {name: value for name, value in told.items() if value}


REQUEST: ContextVar[Asked | None] = ContextVar("request", default=None)
