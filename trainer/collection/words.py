"""Queries out of a document's own words, in any script."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set

from trainer.data.records import JudgedDocument
from trainer.measures.baselines import RUN, UNSPACED

ENGLISH = ("what is", "what are", "how to", "how does", "how much", "why", "when", "where is", "who", "definition of")
BEGUN = 1 / 3  # of the spans
WORDS = (2, 5)  # of a span, at least and at most; two characters count as one where a script has no spaces
CHARACTER = re.compile(rf"[{UNSPACED}]")
BETWEEN = re.compile(rf"(?<=[{UNSPACED}]) (?=[{UNSPACED}])")

Made = Iterator[tuple[str, int]]  # queries, each with the place of its document


def units(text: str) -> list[str]:
    """Words in lower case, and single characters where a script has no spaces."""
    found = list[str]()
    for unspaced, word in RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        found += unspaced or [word]
    return found


def common_words(documents: Sequence[JudgedDocument], share: float) -> frozenset[str]:
    """Words in more than this share of the documents, and in three at least; characters are never among them."""
    counts = Counter(unit for each in documents for unit in {*units(each.text)} if not _is_unspaced(unit))
    return frozenset(word for word, count in counts.items() if count > max(2, share * len(documents)))


def spans(
    documents: Sequence[JudgedDocument], common: Set[str], beginnings: Sequence[str] | None, draw: random.Random
) -> Made:
    """Content words that follow each other, of one document after the other, as often as each has such words.

    A third get one of the ``beginnings``; without any, the English ones if they are in Latin script.
    """
    for turn in itertools.count():
        has_more = False
        for place in shuffled(range(len(documents)), draw):
            content = [unit for unit in units(documents[place].text) if unit not in common]
            if max(1, turn) < len(content):
                yield begun(span(content, draw), beginnings, draw), place
                has_more = True
        if not has_more:
            return


def span(content: Sequence[str], draw: random.Random) -> str:
    """2 to 5 words, or as many pairs of characters, from a random place on."""
    wanted = draw.randint(*WORDS)
    start = draw.randrange(max(1, len(content) - wanted + 1))
    taken, words = list[str](), 0.0
    for unit in content[start:]:
        if words >= wanted:
            break
        taken.append(unit)
        words += 0.5 if _is_unspaced(unit) else 1
    return BETWEEN.sub("", " ".join(taken))


def begun(text: str, beginnings: Sequence[str] | None, draw: random.Random) -> str:
    """The same numbers are drawn whether there are beginnings or not."""
    wanted, number = draw.random() < BEGUN, draw.random()
    if beginnings is None:
        beginnings = ENGLISH if _is_latin(text) else ()
    return f"{beginnings[int(number * len(beginnings))]} {text}" if wanted and beginnings else text


def titles(documents: Sequence[JudgedDocument], draw: random.Random) -> Made:
    """The titles that have words, as they are."""
    for place in shuffled((place for place, each in enumerate(documents) if RUN.search(each.title)), draw):
        yield " ".join(documents[place].title.split()), place


def shuffled(places: Iterable[int], draw: random.Random) -> list[int]:
    shuffled = list(places)
    draw.shuffle(shuffled)
    return shuffled


def _is_unspaced(unit: str) -> bool:
    return len(unit) == 1 and CHARACTER.match(unit) is not None


def _is_latin(text: str) -> bool:
    return all(unicodedata.name(char, "").startswith("LATIN") for char in text if char.isalpha())
