"""Which requests are refused before they are tokenised, because the student would refuse them."""

from __future__ import annotations

import json
import time
from typing import Any

from admission import ANY_TIME, BATCH, PERSON, Urgency, Waiting
from board import Boards
from pair_encoding import EncodingError

PRIORITY = "priority_level"  # a request's parameter; Triton tells a model no request's own priority
KEPT = 0.9  # of what was seen, at each request


class Gate:
    """Compares requests with what waits for ``student``, as far as it lies in the same server and tells."""

    def __init__(self, student: str) -> None:
        self.boards = Boards(student)
        self.refused = 0
        self._tokens = self._documents = 0.0

    def check(self, documents: int, urgency: Urgency) -> None:
        """Raises OverloadedError for a request of so many documents, of as many tokens as others lately, that no
        process of the student would take."""
        shown = [Waiting.of(numbers) for numbers in self.boards.read()]
        if not shown or not self._documents:
            return
        now, tokens = time.monotonic(), documents * self._tokens / self._documents
        delays = [waiting.delay_s(tokens, urgency, now) for waiting in shown]
        if (delay_s := min(delays)) > 0:
            self.refused += 1
            raise shown[delays.index(delay_s)].refusal(delay_s, now)

    def learn(self, documents: int, tokens: int) -> None:
        """Count a request that was tokenised."""
        self._tokens = KEPT * self._tokens + tokens
        self._documents = KEPT * self._documents + documents


def urgency_of(timeout_us: int, parameters: str) -> Urgency:
    """A request's priority and deadline. ``timeout_us`` is how long its caller will wait from now, 0 for any time.

    Raises EncodingError for a priority that is not 1 (a person waits) or 2 (a job).
    """
    named: dict[str, Any] = json.loads(parameters) if parameters else {}
    priority = named.get(PRIORITY, PERSON)
    if priority not in (PERSON, BATCH):
        raise EncodingError(f"{PRIORITY} is {PERSON} or {BATCH}, not {str(priority)[:20]!r}")
    deadline = time.monotonic() + timeout_us / 1e6 if timeout_us else ANY_TIME.deadline
    return Urgency(priority, deadline)
