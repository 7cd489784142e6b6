"""The requests of a load: queries of a file, with numbers of documents that are drawn by a seed.

All files here but one have names that begin with an underscore, since `locust -f loadtest/` takes every other file for
a locustfile. Nothing here needs gevent; other programs can send the same requests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from client import Document, InvalidRequestError
from client.inputs import FaultyLineError, opened, read_queries

LENGTH_BYTES = 4  # before each string of a tensor
ANSWER_BYTES = 5  # for each document: a float32 and a bool
MOST_DOCUMENTS = 1_000_000
MANY = 10_000


@dataclass(frozen=True)
class Request:
    """One query and the documents to rank for it."""

    query: str
    documents: tuple[Document, ...]

    @property
    def request_bytes(self) -> int:
        """The size of the tensors: every text as UTF-8, and its length. Headers are not counted."""
        texts = [self.query, *(text for document in self.documents for text in (document.title, document.summary))]
        return sum(LENGTH_BYTES + len(text.encode("utf-8", "replace")) for text in texts)

    @property
    def response_bytes(self) -> int:
        """The size of the tensors of a whole answer."""
        return ANSWER_BYTES * len(self.documents)


@dataclass(frozen=True)
class Counts:
    """The numbers of documents of requests, drawn by weight. 0 stands for the query's own documents."""

    text: str  # as it was given
    numbers: tuple[int, ...]
    cumulative_weights: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Counts:
        """Read ``100``, ``10:0.7,100:0.25,1000:0.05`` (numbers and weights), ``uniform:1-200`` or ``0``.

        Raises ValueError that says what is wrong.
        """
        if match := re.fullmatch(r"uniform:(\d+)-(\d+)", text):
            low, high = int(match[1]), int(match[2])
            if not 1 <= low <= high <= MANY:
                raise ValueError(f"uniform:{low}-{high}: from 1 to {MANY}, the lower number first")
            return cls(text, tuple(range(low, high + 1)), tuple(range(1, high - low + 2)))
        pairs = [part.partition(":") for part in text.split(",")]
        try:
            numbers = [int(number) for number, _, _ in pairs]
            weights = [float(weight) if colon else 1.0 for _, colon, weight in pairs]
        except ValueError as error:
            raise ValueError(f"{text!r} is none of 100, 10:0.7,100:0.3 and uniform:1-200") from error
        if len(pairs) > 1 and not all(colon for _, colon, _ in pairs):
            raise ValueError(f"{text!r}: every number needs a weight, as in 10:0.7,100:0.3")
        if min(numbers) < 0 or max(numbers) > MOST_DOCUMENTS or (len(numbers) > 1 and min(numbers) < 1):
            raise ValueError(f"{text!r}: numbers of documents from 1 to {MOST_DOCUMENTS}, or 0 alone")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"{text!r}: weights must be above 0")
        return cls(text, tuple(numbers), tuple(accumulate(weights)))

    def draw(self, randomness: random.Random) -> int:
        return randomness.choices(self.numbers, cum_weights=self.cumulative_weights)[0]


def traffic(groups: Sequence[Request], counts: Counts, seed: int) -> Iterator[Request]:
    """Endless requests: a drawn query with its own documents first, then others from a drawn place on.

    The same seed gives the same requests.
    """
    randomness, everything = random.Random(seed), [document for group in groups for document in group.documents]
    while True:
        group = randomness.choice(groups)
        count = counts.draw(randomness) or len(group.documents)
        own = group.documents[:count]
        start = randomness.randrange(len(everything)) if count > len(own) else 0
        others = (everything[(start + step) % len(everything)] for step in range(count - len(own)))
        yield Request(group.query, (*own, *others))


def read_groups(path: Path) -> list[Request]:
    """A request for each query of the file. Raises InvalidRequestError, which names the file and the line."""
    groups: list[Request] = []
    with opened(path) as file:
        for record in read_queries(path, file):
            if isinstance(record, FaultyLineError):
                raise record
            groups.append(Request(record.query, record.documents))
    if not groups:
        raise InvalidRequestError(f"{path}: no queries in this file")
    return groups
