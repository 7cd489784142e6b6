"""Rank a first stage's candidates through a running server, and write the result as a TREC run.

python -m bench.rerank --data dl19.jsonl --run dl19.bm25.run --output runs/dl19.served.run
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from client.rank import Document, RankingClient, RankingError
from trainer.data import DataError, QueryGroup, Scores, appears_whole, check_known, read_groups, read_run
from trainer.stage import command, parse


@dataclass
class RerankArguments:
    """Which candidates, and which server."""

    data: str = field(metadata={"help": "Queries with their documents' texts (JSONL, Parquet)."})
    run: str = field(metadata={"help": "TREC run whose documents are ranked anew."})
    output: str = field(metadata={"help": "TREC run to write."})
    url: str = field(default="localhost:8001", metadata={"help": "host:port of the server's gRPC."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, RerankArguments)
    groups, candidates = read_groups(arguments.data), read_run(arguments.run)
    check_known(candidates, groups, arguments.run)
    groups = [group for group in groups if group.query_id in candidates]
    documents = sum(len(candidates[group.query_id]) for group in groups)
    started = time.perf_counter()
    with RankingClient(arguments.url) as client, appears_whole(Path(arguments.output)) as partial:
        lines = [line for group in tqdm(groups, unit="query") for line in reranked(client, group, candidates)]
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    seconds = time.perf_counter() - started
    print(f"{arguments.output}: {documents:,} documents of {len(groups):,} queries, {documents / seconds:.0f} a second")


def reranked(client: RankingClient, group: QueryGroup, candidates: Scores) -> list[str]:
    """Lines of the run for one query: its candidates in the server's order."""
    chosen = [
        Document(document.doc_id, document.title, document.summary)
        for document in group.documents
        if document.doc_id in candidates[group.query_id]
    ]
    try:
        ranked = client.rank(group.query, chosen)
    except RankingError as error:
        raise DataError(f"query {group.query_id!r}: {error}") from error
    return [f"{group.query_id} Q0 {found.doc_id} {found.rank} {found.score:.7g} disranker" for found in ranked]


if __name__ == "__main__":
    sys.exit(main())
