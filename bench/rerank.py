"""Rank a first stage's candidates through a running server, and write the result as a TREC run.

python -m bench.rerank --data dl19.jsonl --run dl19.bm25.run --output runs/dl19.served.run
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from client import Document, RankingClient, RankingError
from client.files import appears_whole
from trainer.command import command, parse
from trainer.data.rankings import check_known, read_run
from trainer.data.records import DataError, QueryGroup, Scores, read_groups


@dataclass
class RerankArguments:
    """Which candidates, and which server."""

    data: str = field(metadata={"help": "Queries with their documents' texts (JSONL, Parquet)."})
    run: str = field(metadata={"help": "TREC run whose documents are ranked anew."})
    output: str = field(metadata={"help": "TREC run to write."})
    url: str = field(default="localhost:8001", metadata={"help": "host:port of the server's gRPC."})
    bi_encoder: str | None = field(default=None, metadata={"help": "Checkpoint or hub id to rank with instead."})


Scorer = Callable[[str, list[Document]], list[float]]


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, RerankArguments)
    groups, candidates = read_groups(arguments.data), read_run(arguments.run)
    check_known(candidates, groups, arguments.run)
    groups = [group for group in groups if group.query_id in candidates]
    documents = sum(len(candidates[group.query_id]) for group in groups)
    opened = through_server(arguments.url) if arguments.bi_encoder is None else with_bi_encoder(arguments.bi_encoder)
    with opened as score, appears_whole(Path(arguments.output)) as partial:
        started = time.perf_counter()
        lines = [line for group in tqdm(groups, unit="query") for line in reranked(score, group, candidates)]
        seconds = time.perf_counter() - started
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{arguments.output}: {documents:,} documents of {len(groups):,} queries, {documents / seconds:.0f} a second")


@contextmanager
def through_server(url: str) -> Iterator[Scorer]:
    with RankingClient(url) as client:
        yield client.score


@contextmanager
def with_bi_encoder(name: str) -> Iterator[Scorer]:
    """Cosine of the query's and the document's vectors."""
    from sentence_transformers import SentenceTransformer  # installed for tests and benches only

    model = SentenceTransformer(name)

    def score(query: str, documents: list[Document]) -> list[float]:
        texts = [f"{document.title} {document.summary}".strip() for document in documents]
        vectors = np.asarray(model.encode([query, *texts], normalize_embeddings=True, show_progress_bar=False))
        return [float(value) for value in vectors[1:] @ vectors[0]]

    yield score


def reranked(score: Scorer, group: QueryGroup, candidates: Scores) -> list[str]:
    """Lines of the run for one query: its candidates from the best score down."""
    chosen = [
        Document(doc_id=document.doc_id, title=document.title, summary=document.summary)
        for document in group.documents
        if document.doc_id in candidates[group.query_id]
    ]
    try:
        scores = score(group.query, chosen)
    except RankingError as error:
        raise DataError(f"query {group.query_id!r}: {error}") from error
    ranked = sorted(zip(chosen, scores, strict=True), key=lambda pair: -pair[1])
    return [
        f"{group.query_id} Q0 {document.doc_id} {rank} {value:.7g} rerank"
        for rank, (document, value) in enumerate(ranked, start=1)
    ]


if __name__ == "__main__":
    sys.exit(main())
