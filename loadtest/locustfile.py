"""Load on a running server over gRPC: real queries, each with its candidates.

locust -f loadtest/ --host localhost:8001                         # then the page that it names
locust -f loadtest/ --host localhost:8001 --headless -u 8 -t 30s  # a table in the terminal
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc.experimental import gevent
from locust import User, constant, events, task

from client import Document, RankingClient, RankingError

gevent.init_gevent()  # before a channel is opened: else one user who waits holds up all the others

STOP_TIMEOUT_S = 60.0  # longer than a call may take


@dataclass(frozen=True)
class Request:
    """One query and what is ranked for it."""

    query: str
    documents: tuple[Document, ...]


@events.init_command_line_parser.add_listener
def add_flags(parser: Any) -> None:
    parser.add_argument(
        "--queries",
        default="runs/demo/collection/test.jsonl",
        help='JSON lines {"query", "documents": [{"doc_id", "title", "summary"}]} (default %(default)s)',
    )
    parser.add_argument(
        "--documents", type=int, default=0, help="per request, filled up from other queries; 0 is the query's own"
    )


@events.init.add_listener
def load_requests(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    # A user that is killed while a call is under way may leave gRPC's locks held.
    environment.stop_timeout = environment.stop_timeout or STOP_TIMEOUT_S
    try:
        RankingUser.requests = read_requests(Path(options.queries), options.documents)
    except OSError as error:
        _refuse(f"--queries {options.queries}: {error.strerror}")
    except ValueError as error:
        _refuse(str(error))


def _refuse(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


@events.quitting.add_listener
def report_documents(environment: Any, **_: Any) -> None:
    total = environment.stats.total
    seconds = (total.last_request_timestamp or 0) - total.start_time
    if total.num_requests and seconds > 0:
        print(f"{total.total_content_length / seconds:.0f} documents/s", file=sys.stderr)


@events.quit.add_listener
def skip_teardown(exit_code: int, **_: Any) -> None:
    """Under gevent, gRPC's threads may hold the locks that the interpreter's own end then waits for, for ever."""
    atexit.register(_leave, exit_code)


def _leave(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def read_requests(path: Path, documents: int) -> list[Request]:
    """A request for each query of the file. Raises OSError, and ValueError that names the line."""
    with path.open(encoding="utf-8") as file:
        own = [_request(f"{path}:{number}", line) for number, line in enumerate(file, start=1) if line.strip()]
    everything = [document for request in own for document in request.documents]
    if not everything:
        raise ValueError(f"{path}: no documents in this file")
    if documents < 1:
        return own
    return [Request(request.query, tuple(_filled(request.documents, everything, documents))) for request in own]


def _request(where: str, line: str) -> Request:
    try:
        record = json.loads(line)
        documents = tuple(Document(item["doc_id"], item["title"], item["summary"]) for item in record["documents"])
        return Request(record["query"], documents)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: not a query with its documents ({error!r})") from error


def _filled(own: Iterable[Document], others: Iterable[Document], count: int) -> Iterable[Document]:
    return itertools.islice(itertools.chain(own, itertools.cycle(others)), count)


class RankingUser(User):
    """Sends the next request when the last one is answered. The size of an answer is in documents."""

    host = "localhost:8001"
    wait_time = constant(0)
    requests: list[Request]

    def on_start(self) -> None:
        self.client = RankingClient(self.host)

    def on_stop(self) -> None:
        self.client.close()

    @task
    def rank(self) -> None:
        request = random.choice(self.requests)
        scores: list[float] = []
        failure: RankingError | None = None
        started = time.perf_counter()
        try:
            scores = self.client.score(request.query, request.documents)
        except RankingError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name="rank",
            response_time=(time.perf_counter() - started) * 1000,
            response_length=len(scores),
            context={},
            exception=failure,
        )
