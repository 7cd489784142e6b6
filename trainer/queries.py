"""Queries with candidates out of documents, for a team without a log: what a weak teacher scores.

    python -m trainer.queries --data pool.jsonl --bi_encoder MODEL --output weak.jsonl --scores weak.parquet
    python -m trainer.queries --documents texts.jsonl --queries real.txt --causal_lm runs/llm --output weak.jsonl

A query is cut out of a document, is its title, or is written by a causal LM. Each gets the same number of candidates:
near, middle and far ones by a bi-encoder's similarity or BM25's.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from client.command import say
from trainer.addresses import shown
from trainer.collection.bands import Bands, Similarities, with_candidates
from trainer.collection.documents import read_collection
from trainer.collection.queries import drawn, read_queries
from trainer.collection.words import Made, common_words, spans, titles
from trainer.collection.written import DOCUMENT_TOKENS, PROMPT, QueryWriter
from trainer.command import command, parse
from trainer.data.rankings import write_scores
from trainer.data.records import DataError, JudgedDocument, QueryGroup, write_groups
from trainer.measures.baselines import Bm25Index
from trainer.scoring.bi_encoder import BiEncoder
from trainer.scoring.checkpoint import LESS_MEMORY, ScoringArguments, progress
from trainer.scoring.memory import naming_flags
from trainer.storage import check_writable

KINDS = ("spans", "titles", "written")


@dataclass(kw_only=True)
class QueriesArguments(ScoringArguments):
    """The documents, the queries to make of them, and their candidates."""

    output: str = field(metadata={"help": "File of queries with candidates to write, JSON lines."})
    scores: str | None = field(
        default=None,
        metadata={"help": "Parquet file to write, too: the similarity of each pair, as trainer.score would."},
    )
    data: list[str] = field(
        default_factory=list, metadata={"help": "Files of queries whose documents are taken (JSONL, Parquet)."}
    )
    documents: list[str] = field(
        default_factory=list, metadata={"help": "Files of documents alone: doc_id, title and summary a line."}
    )
    queries: list[str] = field(
        default_factory=list,
        metadata={"help": "Files of real queries to add: query_id and query a line of .jsonl, else a text a line."},
    )
    count: int = field(default=5000, metadata={"help": "Queries to make, beside real ones."})
    kinds: list[str] | None = field(
        default=None,
        metadata={"help": f"What is made, in turn: {', '.join(KINDS)}. By default spans and titles, or written ones."},
    )
    causal_lm: str | None = field(default=None, metadata={"help": "Causal LM that writes queries."})
    prompt: str = field(default=PROMPT, metadata={"help": "What it is asked; {document} stands for the text."})
    common_share: float = field(
        default=0.05, metadata={"help": "A word in more than this share of the documents is not taken into a span."}
    )
    beginnings: list[str] | None = field(
        default=None,
        metadata={"help": "Begin a third of the spans; English ones for Latin script by default, none with ''."},
    )
    bi_encoder: str | None = field(
        default=None, metadata={"help": "Bi-encoder whose cosine ranks the documents of a query; BM25 by default."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": f"Tokens of a text: the bi-encoder's own number, {DOCUMENT_TOKENS} for an LM."}
    )
    candidates: int = field(default=24, metadata={"help": "Documents of each query."})
    shares: list[float] = field(
        default_factory=lambda: [1.0, 1.0, 1.0], metadata={"help": "Shares of near, middle and far ones in them."}
    )
    depths: list[int] = field(
        default_factory=lambda: [20, 500], metadata={"help": "Last rank of the near ones, and of the middle ones."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of what is drawn."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kinds = self.kinds or (["written"] if self.causal_lm else ["spans", "titles"])
        if unknown := sorted({*self.kinds} - {*KINDS}):
            raise DataError(f"--kinds {unknown[0]!r} is none of {', '.join(KINDS)}")
        if ("written" in self.kinds) != (self.causal_lm is not None):
            raise DataError("--kinds written and --causal_lm need each other")
        if not self.data and not self.documents:
            raise DataError("give the documents: --data (records of queries) or --documents (documents alone)")
        if self.max_tokens is not None and not (self.bi_encoder or self.causal_lm):
            raise DataError("--max_tokens is for a --bi_encoder or a --causal_lm")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise DataError(f"--max_tokens must be at least 1, not {self.max_tokens}")
        if self.scores is not None and Path(self.scores).absolute() == Path(self.output).absolute():
            raise DataError(f"{self.scores}: --scores and --output are one file")
        if self.count < 0 or (not self.count and not self.queries):
            raise DataError("--count must be at least 1, or 0 where --queries are given")
        if not 0 < self.common_share <= 1:
            raise DataError(f"--common_share must be above 0 and at most 1, not {self.common_share:g}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, QueriesArguments)
    for flag, path in (("output", arguments.output), ("scores", arguments.scores)):
        if path is not None and Path(path).exists():
            raise DataError(f"{path}: exists already; remove it or choose another --{flag}")
    check_writable(arguments.output, arguments.scores)
    with naming_flags(LESS_MEMORY):
        encoder, writer = bi_encoder_of(arguments), writer_of(arguments)  # which may fail, before much is read
        real = read_queries(arguments.queries)
        documents, notes = read_collection(arguments.data, arguments.documents)
        bands = Bands.of(arguments.candidates, arguments.shares, arguments.depths, len(documents))
        name = Path(arguments.output).name.partition(".")[0]  # in the ids, so that several files go together
        queries = [*real, *drawn(kinds_of(arguments, documents, writer), arguments.count, real, name)]
        found = with_candidates(queries, documents, similarities_of(encoder, documents), bands, arguments.seed)
        write_found(arguments, tqdm(found, desc="ranking", total=len(queries), unit="query", delay=5), encoder)
    for note in notes:
        say(note)
    counts = ", ".join(f"{number:,} {kind}" for kind, number in Counter(query.kind for query in queries).items())
    print(
        shown(arguments.output) + f": {len(queries):,} queries ({counts}) with {arguments.candidates} of "
        f"{len(documents):,} documents each"
    )


def write_found(
    arguments: QueriesArguments, found: Iterable[tuple[QueryGroup, list[float]]], encoder: BiEncoder | None
) -> None:
    """The queries with their candidates, and the pairs' similarities if they are asked for."""
    pairs = list[tuple[str, str, float]]()

    def groups() -> Iterator[QueryGroup]:
        for group, similarities in found:
            if arguments.scores is not None:
                ids = (document.doc_id for document in group.documents)
                pairs.extend(zip(repeat(group.query_id), ids, similarities, strict=False))
            yield group

    write_groups(arguments.output, groups())
    if arguments.scores is not None:
        write_scores(arguments.scores, pairs, encoder.name if encoder else "bm25")


def bi_encoder_of(arguments: QueriesArguments) -> BiEncoder | None:
    if arguments.bi_encoder is None:
        return None
    return BiEncoder.load(arguments.bi_encoder, arguments, arguments.max_tokens)


def writer_of(arguments: QueriesArguments) -> QueryWriter | None:
    if arguments.causal_lm is None:
        return None
    return QueryWriter(arguments.causal_lm, arguments.prompt, arguments, arguments.max_tokens or DOCUMENT_TOKENS)


def kinds_of(
    arguments: QueriesArguments, documents: Sequence[JudgedDocument], writer: QueryWriter | None
) -> dict[str, Made]:
    """The makers of queries, by kind. Each draws numbers of its own."""
    kinds: dict[str, Made] = {}
    for kind in dict.fromkeys(arguments.kinds or ()):
        draw = random.Random(f"{arguments.seed} {kind}")
        if kind == "written" and writer is not None:
            kinds[kind] = writer.queries(documents, draw)
        elif kind == "titles":
            kinds[kind] = titles(documents, draw)
        else:
            common = common_words(documents, arguments.common_share)
            beginnings = None if arguments.beginnings is None else [each for each in arguments.beginnings if each]
            kinds[kind] = spans(documents, common, beginnings, draw)
    return kinds


def similarities_of(encoder: BiEncoder | None, documents: Sequence[JudgedDocument]) -> Similarities:
    """The cosine of a bi-encoder, which reads each document once, or BM25 with the statistics of the documents."""
    texts = [document.text for document in documents]
    if encoder is None:
        index = Bm25Index(texts)
        return lambda queries: np.stack([index.scores(query) for query in queries])
    with progress(encoder.name, len(texts), unit="document") as bar:
        documents_NH = encoder.documents(texts, lambda places: bar.update(len(places)))
    return lambda queries: encoder.queries(queries) @ documents_NH.T


if __name__ == "__main__":
    sys.exit(main())
