"""The documents of a collection, once each, out of records and of plain documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tqdm import tqdm

from client.inputs import read_documents
from trainer.data.records import DataError, JudgedDocument, iter_groups
from trainer.measures.baselines import RUN


class Collection(NamedTuple):
    """Documents of different texts and different ids, without labels, and what a user should know of them."""

    documents: list[JudgedDocument]
    notes: list[str]


def read_collection(records: Sequence[str], plain: Sequence[str]) -> Collection:
    """The documents of files of queries, and of files of documents alone, in their order.

    A text is taken once. Where another text had its id before, it gets a new one. Raises DataError where none is left.
    """
    texts: dict[str, JudgedDocument] = {}
    for document in tqdm(_documents(records, plain), desc="reading", unit="document", delay=5):
        texts.setdefault(document.text, document)
    worded = [document for text, document in texts.items() if RUN.search(text)]
    notes = []
    if wordless := [document.doc_id for text, document in texts.items() if not RUN.search(text)]:
        notes.append(f"documents without words, left out: {len(wordless):,}, such as {wordless[0]!r}")
    if not worded:
        raise DataError("; ".join(["no document with words", *notes]))
    named, renamed = _with_own_ids(worded)
    if renamed:
        notes.append(f"documents whose id another text has, with new ones: {len(renamed):,}, such as {renamed[0]!r}")
    return Collection(named, notes)


def _documents(records: Sequence[str], plain: Sequence[str]) -> Iterator[JudgedDocument]:
    for group in iter_groups(*records):
        for document in group.documents:
            yield replace(document, label=None, clicks=0)
    for path in plain:
        for each in read_documents(path):
            yield JudgedDocument(each.doc_id, each.title, each.summary, None, 0)


def _with_own_ids(documents: Sequence[JudgedDocument]) -> tuple[list[JudgedDocument], list[str]]:
    """The documents, and the ids that are new: ``d7`` becomes ``d7-2``."""
    named: dict[str, JudgedDocument] = {}
    renamed = []
    for document in documents:
        doc_id, number = document.doc_id, 1
        while doc_id in named:
            number += 1
            doc_id = f"{document.doc_id}-{number}"
        if number > 1:
            document = replace(document, doc_id=doc_id)
            renamed.append(doc_id)
        named[doc_id] = document
    return list(named.values()), renamed
