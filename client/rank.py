"""Rank documents for queries on a running server.

    python client/rank.py --query "garden bridge" docs.jsonl
    python client/rank.py --queries queries.jsonl --output ranked.jsonl

docs.jsonl has lines {"doc_id", "title", "summary"}; queries.jsonl has lines {"query_id", "query", "documents": [...]}
with such documents, and ranked.jsonl gets a line {"query_id", "documents": [...]}, best first, for each of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from a checkout

from client import outputs
from client.batch import Batch, rank_batch
from client.command import command
from client.connection import BATCH, PERSON
from client.errors import InvalidRequestError
from client.explain import Explainer
from client.flags import EXIT_CODES, add_server_flags, connection_of
from client.inputs import check_word, read_documents
from client.ranking import RankingClient

MOST_IN_FLIGHT = 1000  # each takes a thread


@command
def main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    connection = replace(connection_of(arguments), priority=PERSON if arguments.queries is None else BATCH)
    if arguments.format == "trec":
        check_word("--tag", arguments.tag)
        check_word("--query_id", arguments.query_id)
    with (
        RankingClient.of(connection) as client,
        closing(Explainer(connection)) if arguments.explain else nullcontext() as explainer,
    ):
        run = _single if arguments.query is not None else _batch
        return run(client, arguments, explainer)


def _single(client: RankingClient, arguments: argparse.Namespace, explainer: Explainer | None) -> int:
    documents = read_documents(arguments.documents, one_word_ids=arguments.format == "trec")
    requests = -(-len(documents) // client.document_limit())  # asked before the clock starts
    started = time.perf_counter()
    ranked = client.rank(arguments.query, documents, arguments.top_k)
    seconds = time.perf_counter() - started
    lines = {
        "table": lambda: outputs.table(ranked, documents),
        "jsonl": lambda: outputs.jsonl(ranked),
        "trec": lambda: outputs.trec(arguments.query_id, ranked, arguments.tag),
    }
    outputs.show(outputs.encoded(lines[arguments.format]()))
    _explain(explainer, requests, seconds)
    return 0


def _batch(client: RankingClient, arguments: argparse.Namespace, explainer: Explainer | None) -> int:
    batch = Batch(
        queries=arguments.queries,
        output=arguments.output,
        format=arguments.format,
        tag=arguments.tag,
        top_k=arguments.top_k,
        in_flight=arguments.in_flight,
        skip=arguments.on_error == "skip",
    )
    tally = rank_batch(client, batch)
    print(tally, file=sys.stderr)
    _explain(explainer, tally.requests, tally.seconds, arguments.in_flight)
    return 1 if tally.left_out else 0


def _explain(explainer: Explainer | None, requests: int, seconds: float, in_flight: int = 1) -> None:
    if explainer is not None:
        print("\n".join(explainer.lines(requests, seconds, in_flight)), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXIT_CODES.format("\n  1    queries were left out (--on_error skip)"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "documents", nargs="?", help="for --query: a file (a document without an id gets its line); - is stdin"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--query", metavar="TEXT", help="rank the documents for this one")
    what.add_argument("--queries", metavar="FILE", help="rank each line's documents for its query; - is stdin")
    parser.add_argument("--top_k", type=int, help="keep only the best")
    parser.add_argument(
        "--format",
        choices=("table", "jsonl", "trec"),
        help="trec: qid Q0 docid rank score tag; default: table for --query on a terminal, else jsonl",
    )
    parser.add_argument("--query_id", default="1", help="of --query, for trec (default %(default)s)")
    parser.add_argument("--tag", default="disranker", help="last column of trec (default %(default)s)")
    parser.add_argument(
        "--explain", action="store_true", help="print on standard error where the time went, in the server too"
    )
    batch = parser.add_argument_group("with --queries")
    batch.add_argument(
        "--output",
        type=Path,
        help="file to write; FILE.part until it is whole; the same command resumes it. Default: stdout",
    )
    batch.add_argument("--in_flight", type=int, default=8, help="queries at a time (default %(default)s)")
    batch.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="skip reports and leaves out a query that is faulty or cannot be scored; a server that is gone or too "
        "slow always stops (default %(default)s)",
    )
    add_server_flags(parser)
    return parser


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if (arguments.query is None) != (arguments.documents is None):
        parser.error("--query goes with a file of documents (or -), --queries without")
    if arguments.query is not None and arguments.output is not None:
        parser.error("--output goes with --queries; use > for one query")
    if arguments.queries is not None and arguments.format == "table":
        parser.error("--queries are written as --format jsonl or trec")
    if not 1 <= arguments.in_flight <= MOST_IN_FLIGHT:
        raise InvalidRequestError(f"--in_flight must be from 1 to {MOST_IN_FLIGHT}, not {arguments.in_flight}")
    on_terminal = arguments.query is not None and sys.stdout.isatty()
    arguments.format = arguments.format or ("table" if on_terminal else "jsonl")


if __name__ == "__main__":
    sys.exit(main())
