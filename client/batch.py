"""Rank the queries of a file into a file: in order, some at a time. A second start resumes the first."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from client import outputs
from client.command import say
from client.concurrency import in_order
from client.errors import InvalidAnswerError, InvalidRequestError, RankingError
from client.inputs import STDIN, FaultyLineError, QueryRecord, lines, opened, read_queries
from client.partial import PartialFile, Settings
from client.patience import patiently
from client.ranking import RankingClient
from client.records import RankedDocument

EVERY_S = 10.0  # between lines of progress
# These concern one query. Any other error would meet all queries that follow.
OF_A_QUERY = (InvalidRequestError, InvalidAnswerError)


@dataclass(frozen=True)
class Batch:
    """Settings of a batch."""

    queries: str  # a file, or - for standard input
    output: Path | None  # None is standard output
    format: str  # jsonl or trec
    tag: str  # last column of trec
    top_k: int | None  # None keeps all documents
    in_flight: int  # queries at a time
    skip: bool  # leave out queries that fail


@dataclass
class Tally:
    """The result of a batch in numbers."""

    queries: int = 0
    documents: int = 0
    requests: int = 0  # to the server
    left_out: int = 0
    before: int = 0  # queries that an earlier start ranked
    seconds: float = 0.0

    def __str__(self) -> str:
        rates = f"{self.queries / self.seconds:.1f} queries/s, {self.documents / self.seconds:.0f} documents/s"
        before = f" after {self.before} of an earlier start" if self.before else ""
        left_out = f"; {self.left_out} left out" if self.left_out else ""
        return f"{self.queries} queries, {self.documents} documents in {self.seconds:.1f} s{before}: {rates}{left_out}"


def rank_batch(client: RankingClient, batch: Batch) -> Tally:
    """Rank all queries. Raises RankingError; the queries before it are kept, and the same command resumes there."""
    settings: Settings = {
        "model": client.connection.model,
        "version": client.connection.version,
        "format": batch.format,
        "top_k": batch.top_k,
        **({"tag": batch.tag} if batch.format == "trec" else {}),
    }
    with opened(batch.queries) as file:
        records = read_queries(batch.queries, file, one_word_ids=batch.format == "trec")
        if batch.output is None:
            return _rank_all(client, batch, records, outputs.show, Tally())
        with closing(PartialFile(batch.output, settings)) as output:
            resumed = output.resume(records, gaps=batch.skip)
            tally = Tally(before=resumed.done, left_out=resumed.left_out)
            try:
                tally = _rank_all(client, batch, resumed.records, output.write, tally)
            except RankingError as error:
                kept = tally.before + tally.queries
                raise error.reworded(
                    f"{error} ({output.part} keeps the {kept} before: the same command resumes)"
                ) from error
            except KeyboardInterrupt:
                kept = tally.before + tally.queries
                print(f"interrupted: {output.part} keeps {kept} queries, the same command resumes", file=sys.stderr)
                raise
            output.appear()
            return tally


def _rank_all(
    client: RankingClient,
    batch: Batch,
    records: Iterator[QueryRecord | FaultyLineError],
    write: Callable[[bytes], None],
    tally: Tally,
) -> Tally:
    limit = client.document_limit()
    started = time.perf_counter()
    with _closed_by_ctrl_c(client), Progress(_count(batch.queries), tally.before + tally.left_out) as progress:
        for record, outcome in _outcomes(client, batch, records):
            if isinstance(outcome, RankingError):
                where = "" if record is None else f"{record.where}: query {record.query_id!r}: "
                if not batch.skip or not isinstance(outcome, OF_A_QUERY):
                    raise outcome.reworded(f"{where}{outcome}")
                say(f"left out: {where}{outcome}")
                tally.left_out += 1
            elif record is not None:
                write(outputs.encoded(_lines(batch, record, outcome)))
                tally.queries += 1
                tally.documents += len(record.documents)
                tally.requests += -(-len(record.documents) // limit)
            progress.advance()
    tally.seconds = time.perf_counter() - started
    return tally


def _outcomes(
    client: RankingClient, batch: Batch, records: Iterable[QueryRecord | FaultyLineError]
) -> Iterator[tuple[QueryRecord | None, list[RankedDocument] | RankingError]]:
    """Yield a ranking or an error for each record, in order. A faulty line is an error without a record."""

    def read() -> Iterator[QueryRecord | FaultyLineError]:
        for record in records:
            yield record
            if isinstance(record, FaultyLineError) and not batch.skip:
                return  # what was read before it is answered first

    def rank(record: QueryRecord, left_s: float) -> list[RankedDocument]:
        return client.rank(record.query, record.documents, batch.top_k, timeout_s=left_s)

    def outcome(
        record: QueryRecord | FaultyLineError,
    ) -> tuple[QueryRecord | None, list[RankedDocument] | RankingError]:
        if isinstance(record, FaultyLineError):
            return None, record
        try:
            return record, patiently(partial(rank, record), client.connection.timeout_s, ("overloaded",))
        except RankingError as error:
            return record, error

    answers = in_order(outcome, read(), batch.in_flight, 2 * batch.in_flight)
    try:
        for answer in answers:  # noqa: UP028 - it would close them before the client
            yield answer
    except BaseException:
        client.close()  # otherwise the end waits for answers that nobody wants any more
        raise
    finally:
        answers.close()


@contextmanager
def _closed_by_ctrl_c(client: RankingClient) -> Iterator[None]:
    """End requests under way at once on Ctrl-C, which otherwise waits for their answers."""

    def interrupt(*_: object) -> None:
        # Beside this thread, which may be in the midst of a call and hold what closing it needs.
        threading.Thread(target=client.close).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(batch: Batch, record: QueryRecord, ranked: list[RankedDocument]) -> Iterator[str]:
    if batch.format == "trec":
        return outputs.trec(record.query_id, ranked, batch.tag)
    return outputs.jsonl_of_query(record.query_id, ranked)


def _count(path: str) -> int | None:
    """Count the queries of a file; None for a pipe."""
    if path == STDIN or not Path(path).is_file():
        return None
    with opened(path) as file:
        return sum(1 for _ in lines(path, file))


class Progress:
    """Counts queries up to ``total`` (None if unknown); ``done`` of them were ranked by an earlier start."""

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._before, self._done = total, done, done
        self._bar: Any = None
        self._started = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit=" queries", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif (now := time.monotonic()) - self._told >= EVERY_S:
            self._told = now
            rate = (self._done - self._before) / (now - self._started)
            of = "" if self._total is None else f" of {self._total}"
            say(f"{self._done}{of} queries, {rate:.1f} queries/s")
