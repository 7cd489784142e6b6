"""A generated search log in readable English: deterministic, and hard for word matching.

    python -m examples.collection --output_dir runs/demo/collection

A query asks for an object, an intent and an attribute ("mend cheap bike"). A document's grade is the
number of these that it is about, or 0 if the object is another. Every concept has two names that
queries favour and two that documents favour, therefore the words often differ. Documents also mention
in passing what they are not about. The log has every concept of the test queries, but not their
combinations. ``raw/`` has the same as a search engine would have it: a row for each page that was shown, texts of
queries and documents, and judgments by split, for ``trainer.prepare``.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from trainer.command import command, parse
from trainer.data.records import DataError
from trainer.measures.baselines import Bm25Index
from trainer.storage import check_writable

Splits = dict[str, list[dict[str, Any]]]  # rows of each file

CONCEPTS = Path(__file__).with_name("concepts.json")
SLOTS = ("object", "intent", "attribute")
SIZES = {"train": 200, "log": 1500, "dev": 50, "test": 200}
CROSSING = 0.3  # how often a text uses a name that the other side favours
CANDIDATES = 20
SESSIONS = 4  # times that a logged query was asked
EXAMINED = 0.8  # each place further down is examined this much less often
ATTRACTION = (0.02, 0.1, 0.3, 0.9)  # clicks an examined document draws, by grade
UNSTEADY = 1.0  # deviation of an engine's scores from session to session, in units of BM25

TITLES = (
    "Your {attribute} {object}: {intent}",
    "All on {intent} for your {attribute} {object}",
    "About the {object}, {attribute}: a guide to {intent}",
    "The {attribute} {object} and its {intent}",
    "On {intent}, for any {object} that is {attribute}",
)
OPENINGS = (
    "Everything about {intent} for your {attribute} {object}.",
    "Our {object} pages on {intent}, {attribute} picks included.",
    "We look at {intent}: what the {attribute} {object} needs.",
    "More {attribute} ideas for {object} owners, {intent} explained.",
)
MENTIONS = (
    "People also visit: {mention}.",
    "Not to be confused with {mention}.",
)


@dataclass(frozen=True)
class Topic:
    """The topic of a query or a document: one concept of each slot, by number."""

    object: int
    intent: int
    attribute: int


def grade(query: Topic, document: Topic) -> int:
    """Slots that match, 0 without the object."""
    if query.object != document.object:
        return 0
    return 1 + (query.intent == document.intent) + (query.attribute == document.attribute)


class Collection:
    """Writes the records of one seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._names: dict[str, list[list[str]]] = json.loads(CONCEPTS.read_text(encoding="utf-8"))
        self._written = 0
        self.clicked: dict[str, list[list[int]]] = {}  # by query of the log, of each place in each session
        self.grades: dict[str, list[int]] = {}  # by query of the log, what its documents are worth

    def splits(self, size: float = 1.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """``(name, records)`` of each file, with ``size`` times the usual queries.

        No two queries of the collection ask for the same topic.
        """
        topics = [Topic(*numbers) for numbers in product(*(range(len(self._names[slot])) for slot in SLOTS))]
        self._draw.shuffle(topics)
        for name, usual in SIZES.items():
            count = round(usual * size)
            part, topics = topics[:count], topics[count:]
            yield name, [self._group(f"{name}-{number}", topic, name == "log") for number, topic in enumerate(part)]

    def _group(self, query_id: str, topic: Topic, logged: bool) -> dict[str, Any]:
        names = [self._name(slot, getattr(topic, slot), of_query=True) for slot in SLOTS]
        self._draw.shuffle(names)
        about = self._candidates(topic)
        grades = [grade(topic, document) for document in about]
        clicks = [0] * len(about)
        if logged:
            self.clicked[query_id], self.grades[query_id] = self._clicks(grades), grades
            clicks = [sum(of_place) for of_place in self.clicked[query_id]]
        documents = [
            {**self._document(document, topic), "label": None if logged else label, "clicks": count}
            for document, label, count in zip(about, grades, clicks, strict=True)
        ]
        return {"query_id": query_id, "query": " ".join(names), "documents": documents}

    def _candidates(self, topic: Topic) -> list[Topic]:
        """One document about all of it, a few about a part, and the rest about other objects."""
        about = [topic, self._other(topic, "intent"), self._other(topic, "attribute")]
        about += [self._other(self._other(topic, "intent"), "attribute") for _ in range(self._draw.randint(2, 4))]
        while len(about) < CANDIDATES:
            elsewhere = self._other(topic, "object")
            for slot in ("intent", "attribute"):
                elsewhere = elsewhere if self._draw.random() < 0.5 else self._other(elsewhere, slot)
            about.append(elsewhere)
        self._draw.shuffle(about)
        return about

    def _other(self, topic: Topic, slot: str) -> Topic:
        numbers = {name: getattr(topic, name) for name in SLOTS}
        numbers[slot] = self._draw.choice([n for n in range(len(self._names[slot])) if n != numbers[slot]])
        return Topic(**numbers)

    def _document(self, about: Topic, asked: Topic) -> dict[str, Any]:
        sentences = [self._draw.choice(OPENINGS)]
        # Documents of every grade mention another object, or the mention would betray grade 0.
        if self._draw.random() < 0.5:
            mentioned = asked if about.object != asked.object else self._other(about, "object")
            mention = self._name("object", mentioned.object, of_query=self._draw.random() < 0.5)
            sentences.append(self._draw.choice(MENTIONS).replace("{mention}", mention))
        title = self._filled(self._draw.choice(TITLES), about)
        self._written += 1
        return {
            "doc_id": f"d{self._written:06d}",
            "title": title,
            "summary": " ".join(self._filled(sentence, about) for sentence in sentences),
        }

    def _filled(self, template: str, about: Topic) -> str:
        return template.format(**{slot: self._name(slot, getattr(about, slot), of_query=False) for slot in SLOTS})

    def _name(self, slot: str, number: int, of_query: bool) -> str:
        queries_favour, documents_favour = self._names[slot][number][:2], self._names[slot][number][2:]
        crosses = self._draw.random() < CROSSING
        return self._draw.choice(queries_favour if of_query != crosses else documents_favour)

    def _clicks(self, grades: Sequence[int]) -> list[list[int]]:
        """0 or 1 for each place in each session. A place must be examined, likelier the higher it is, and attract."""
        clicks: list[list[int]] = [[]]
        while not any(map(any, clicks)):  # a log keeps queries with clicks
            chances = [EXAMINED**place * ATTRACTION[label] for place, label in enumerate(grades)]
            clicks = [[int(self._draw.random() < chance) for _ in range(SESSIONS)] for chance in chances]
        return clicks


@dataclass
class CollectionArguments:
    """The settings of a collection."""

    output_dir: str = field(metadata={"help": "Folder for train, log, dev and test.jsonl, and raw/."})
    seed: int = field(default=0, metadata={"help": "Equal seeds give equal files."})
    size: float = field(default=1.0, metadata={"help": "Queries, as a share of the usual number: 0.1 is for a try."})
    bm25_sessions: int = field(
        default=0,
        metadata={
            "help": f"Sessions of each logged query, whose pages are roughly in BM25's order. 0: {SESSIONS} sessions, "
            "whose order says nothing."
        },
    )

    def __post_init__(self) -> None:
        if self.bm25_sessions < 0:
            raise DataError(f"--bm25_sessions must be at least 0, not {self.bm25_sessions}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, CollectionArguments)
    folder = Path(arguments.output_dir)
    check_writable(folder)
    collection = Collection(arguments.seed)
    splits = dict(collection.splits(arguments.size))
    if arguments.bm25_sessions:
        pages = bm25_pages(splits["log"], collection.grades, arguments.bm25_sessions, arguments.seed)
    else:
        pages = [page for group in splits["log"] for page in pages_of(group, collection.clicked[group["query_id"]])]
    for name, records in splits.items():
        write(folder / f"{name}.jsonl", records)
        print(f"{folder / f'{name}.jsonl'}: {len(records)} queries")
    for name, rows in raw(splits, pages).items():
        write(folder / f"raw/{name}.jsonl", rows)


def raw(splits: Splits, pages: list[dict[str, Any]]) -> Splits:
    """The rows of each raw file, by its name."""
    groups = [group for records in splits.values() for group in records]
    judgments = {
        f"judgments/{name}": [
            {"query": group["query"], "doc_id": document["doc_id"], "label": document["label"]}
            for group in records
            for document in group["documents"]
        ]
        for name, records in splits.items()
        if name != "log"
    }
    return judgments | {
        "pages": pages,
        "queries": [{name: group[name] for name in ("query_id", "query")} for group in groups],
        "documents": [
            {name: document[name] for name in ("doc_id", "title", "summary")}
            for group in groups
            for document in group["documents"]
        ],
    }


def bm25_pages(
    groups: Sequence[dict[str, Any]], grades: Mapping[str, Sequence[int]], sessions: int, seed: int
) -> list[dict[str, Any]]:
    """Pages of an engine that has words only, so that what is far down was seldom seen; the groups get their clicks."""
    draw, pages = random.Random(seed), []
    for group in groups:
        documents, worth = group["documents"], grades[group["query_id"]]
        scores = Bm25Index([f"{each['title']} {each['summary']}" for each in documents]).scores(group["query"])
        for document in documents:
            document["clicks"] = 0
        for session in range(sessions):
            unsteady = [score + draw.gauss(0, UNSTEADY) for score in scores.tolist()]
            order = sorted(range(len(documents)), key=unsteady.__getitem__, reverse=True)
            clicks = [int(draw.random() < EXAMINED**place * ATTRACTION[worth[at]]) for place, at in enumerate(order)]
            for at, click in zip(order, clicks, strict=True):
                documents[at]["clicks"] += click
            doc_ids = [documents[at]["doc_id"] for at in order]
            pages.append(page(group, session, doc_ids, clicks))
    return pages


def pages_of(group: dict[str, Any], clicked: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    """A page of a query for each session."""
    doc_ids = [document["doc_id"] for document in group["documents"]]
    for session, clicks in enumerate(zip(*clicked, strict=True)):
        yield page(group, session, doc_ids, clicks)


def page(group: dict[str, Any], session: int, doc_ids: Sequence[str], clicks: Sequence[int]) -> dict[str, Any]:
    name = f"{group['query_id']}-{session}"
    return {"session": name, "query": group["query"], "doc_ids": doc_ids, "clicks": clicks}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
