"""Requests of real queries and documents, of which a wanted share was sent before. Standard library only.

A collection is smaller than the traffic of a bench. A document that comes again therefore has its words rotated by one
more. It has the same length, and no cache has seen it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

from bench.serving.load import Pair

HOT = 200  # documents that repeated requests draw from


class Traffic:
    """The requests that one system gets: the same queries and documents in the same order for all systems."""

    def __init__(self, groups: Sequence[Pair], seed: int = 0) -> None:
        self.queries = [query for query, _ in groups]
        texts = list(dict.fromkeys(text for _, documents in groups for text in documents))
        places = {text: place for place, text in enumerate(texts)}
        self._own = [[places[text] for text in documents] for _, documents in groups]
        self._words = [text.split() for text in texts]
        self._sent = [0] * len(texts)
        self._everything = list(range(len(texts)))
        random.Random(seed).shuffle(self._everything)
        self.hot = [" ".join(self._words[place]) for place in self._everything[:HOT]]

    def requests(self, documents: int, repeated: float, seed: int = 0) -> Iterator[Pair]:
        """Requests without end, each with ``documents`` documents. Not for several threads at a time."""
        draw, every = random.Random(seed), self._everything
        for number in count():
            visit, query = divmod(number, len(self.queries))
            own = self._own[query]
            places = [own[(visit * documents + step) % len(own)] for step in range(min(documents, len(own)))]
            start = draw.randrange(len(every))  # the rest of a large request is other queries' documents
            places += [every[(start + step) % len(every)] for step in range(documents - len(places))]
            yield (
                self.queries[query],
                tuple(
                    draw.choice(self.hot) if repeated and draw.random() < repeated else self._fresh(place)
                    for place in places
                ),
            )

    def _fresh(self, place: int) -> str:
        """The document as it was never sent to this system."""
        self._sent[place] += 1
        words, turn = self._words[place], self._sent[place]
        cut = turn % max(1, len(words))
        text = " ".join(words[cut:] + words[:cut])
        return text if turn < len(words) else f"{text} {turn}"
