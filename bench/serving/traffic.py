"""Requests of real queries and documents, of which a wanted share was sent before. Standard library only.

A collection is smaller than the traffic of a bench. A document that comes again therefore has its words rotated by one
more. It has the same length, and no cache has seen it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from bench.serving.cells import Pair

HOT = 200  # documents that repeated requests draw from


def save(path: Path, groups: Sequence[Pair]) -> None:
    path.write_text(json.dumps(groups), encoding="utf-8")


def load(path: Path) -> list[Pair]:
    return [(query, tuple(documents)) for query, documents in json.loads(path.read_text(encoding="utf-8"))]


class Traffic:
    """The requests that one system gets: the same queries and documents in the same order for all systems."""

    def __init__(self, groups: Sequence[Pair], seed: int = 0) -> None:
        self.queries = [query for query, _ in groups]
        texts = list(dict.fromkeys(text for _, documents in groups for text in documents))
        places = {text: place for place, text in enumerate(texts)}
        self._own = [[places[text] for text in documents] for _, documents in groups]
        self._words = [text.split() for text in texts]
        self._sent = [0] * len(texts)
        draw = random.Random(seed)
        self._everything = list(range(len(texts)))
        draw.shuffle(self._everything)
        self.hot = [" ".join(self._words[place]) for place in self._everything[:HOT]]

    def requests(self, documents: int, repeated: float, seed: int = 0) -> _Requests:
        """Requests without end, each with ``documents`` documents."""
        return _Requests(self, documents, repeated, seed)

    def _fresh(self, place: int) -> str:
        """The document as it was never sent to this system."""
        self._sent[place] += 1
        words, turn = self._words[place], self._sent[place]
        cut = turn % max(1, len(words))
        text = " ".join(words[cut:] + words[:cut])
        return text if turn < len(words) else f"{text} {turn}"


class _Requests:
    """An iterator; not for several threads at a time."""

    def __init__(self, traffic: Traffic, documents: int, repeated: float, seed: int) -> None:
        self._traffic, self._documents, self._repeated = traffic, documents, repeated
        self._draw, self._number = random.Random(seed), 0

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> Pair:
        traffic, count = self._traffic, self._documents
        visit, query = divmod(self._number, len(traffic.queries))
        own, every = traffic._own[query], traffic._everything
        self._number += 1
        places = [own[(visit * count + step) % len(own)] for step in range(min(count, len(own)))]
        start = self._draw.randrange(len(every))  # the rest of a large request is other queries' documents
        places += [every[(start + step) % len(every)] for step in range(count - len(places))]
        return traffic.queries[query], tuple(self._text(place) for place in places)

    def _text(self, place: int) -> str:
        if self._repeated and self._draw.random() < self._repeated:
            return self._draw.choice(self._traffic.hot)
        return self._traffic._fresh(place)
