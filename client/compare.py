"""Two models' rankings of one query, side by side, with what moved.

    python -m client.compare --query "garden bridge" docs.jsonl --left ranker@a:8001 --right ranker@b:8001

docs.jsonl has lines {"doc_id", "title", "summary"}. An arrow says how many ranks the right side has a document above or
below the left. Scores of different models are on different scales: compare places, not scores.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from client import outputs
from client.agreement import kendall_tau
from client.command import command
from client.connection import Connection, parse_target
from client.errors import InvalidRequestError
from client.flags import EXIT_CODES, add_server_flags, connection_of
from client.inputs import read_documents
from client.outputs import columns, fitted, padded, printable, row
from client.ranking import RankingClient
from client.records import Document, RankedDocument

MOVED_COLUMNS, BETWEEN = 5, "  "
WIDEST_ID = 16


@dataclass(frozen=True)
class Side:
    """A target and its ranking of all documents."""

    name: str
    ranked: list[RankedDocument]

    def by_index(self) -> list[RankedDocument]:
        return sorted(self.ranked, key=lambda found: found.index)


@command
def main(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.top_k < 1:
        raise InvalidRequestError(f"--top_k must be at least 1, not {arguments.top_k}")
    default = connection_of(arguments)
    targets = [parse_target(text, default) for text in (arguments.left, arguments.right)]
    documents = read_documents(arguments.documents)
    left, right = (_ranked(target, arguments.query, documents) for target in targets)
    lines = {"table": _table, "jsonl": _jsonl}[arguments.format]
    outputs.show(outputs.encoded(lines(left, right, documents, arguments.top_k)))


def _ranked(target: Connection, query: str, documents: Sequence[Document]) -> Side:
    with RankingClient.of(target) as client:
        return Side(f"{target.model}@{','.join(target.servers)}", client.rank(query, documents))


def _table(left: Side, right: Side, documents: Sequence[Document], top_k: int) -> Iterator[str]:
    ids = [printable(found.doc_id) for side in (left, right) for found in side.ranked[:top_k]]
    width = min(WIDEST_ID, max(columns(text) for text in ids))
    room = shutil.get_terminal_size().columns
    digits = len(str(min(top_k, len(documents))))
    half = max(0, (room - digits - len(BETWEEN) * 3 - MOVED_COLUMNS) // 2)
    yield BETWEEN.join([" " * digits, padded(left.name, half), "moved".ljust(MOVED_COLUMNS), fitted(right.name, half)])
    places = {found.index: found.rank for found in left.ranked}
    for one, other in zip(left.ranked[:top_k], right.ranked[:top_k], strict=True):
        cells = [fitted(row(found, documents, width, half), half) for found in (one, other)]
        moved = _arrow(places[other.index] - other.rank).ljust(MOVED_COLUMNS)
        yield BETWEEN.join([f"{one.rank:{digits}d}", padded(cells[0], half), moved, cells[1]])
    yield ""
    yield from textwrap.wrap(_summary(left, right, top_k), max(room, 1))


def _arrow(moved: int) -> str:
    return "=" if moved == 0 else f"{'↑' if moved > 0 else '↓'}{abs(moved)}"


def _summary(left: Side, right: Side, top_k: int) -> str:
    figures = _figures(left, right, top_k)
    tau = "undefined (a side is all ties)" if figures["kendall_tau"] is None else f"{figures['kendall_tau']:.3f}"
    cut = [sum(found.truncated for found in side.ranked) for side in (left, right)]
    return (
        f"{figures['documents']} documents, {figures['moved']} moved; Kendall tau {tau}; "
        f"overlap@{figures['overlap_at']} {figures['overlap']:.2f}; cut: {cut[0]} left, {cut[1]} right"
    )


def _figures(left: Side, right: Side, top_k: int) -> dict[str, Any]:
    scores = [np.array([found.score for found in side.by_index()], dtype=np.float32) for side in (left, right)]
    orders = [[found.index for found in side.ranked] for side in (left, right)]
    tau, depth = kendall_tau(*scores), min(top_k, len(left.ranked))
    return {
        "documents": len(left.ranked),
        "moved": sum(one != other for one, other in zip(*orders, strict=True)),
        "kendall_tau": None if math.isnan(tau) else tau,
        "overlap_at": depth,
        "overlap": len({*orders[0][:depth]} & {*orders[1][:depth]}) / depth,  # the share that both have
    }


def _jsonl(left: Side, right: Side, documents: Sequence[Document], top_k: int) -> Iterator[str]:
    """A line for each document among the first ``top_k`` of a side, in the right side's order, then the figures."""
    before = left.by_index()
    for after in right.ranked:
        found = before[after.index]
        if min(found.rank, after.rank) > top_k:
            continue
        record = {"doc_id": after.doc_id, "index": after.index, "title": after.title, "moved": found.rank - after.rank}
        sides = {"left": found, "right": after}
        shown = ("rank", "score", "probability", "truncated")
        record |= {side: {name: getattr(one, name) for name in shown} for side, one in sides.items()}
        yield json.dumps(record, ensure_ascii=False)
    yield json.dumps({"left": left.name, "right": right.name, **_figures(left, right, top_k)}, ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m client.compare",
        description=__doc__,
        epilog=EXIT_CODES.format(""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("documents", help="file of documents; - is stdin")
    parser.add_argument("--query", required=True, metavar="TEXT")
    target = "model@host:port, model, or @host:port; what is left out is ranker, localhost:8001"
    parser.add_argument("--left", required=True, metavar="TARGET", help=target)
    parser.add_argument("--right", required=True, metavar="TARGET", help="as --left")
    parser.add_argument(
        "--top_k", type=int, default=10, help="rows of the table, and k of overlap@k (default %(default)s)"
    )
    parser.add_argument(
        "--format",
        choices=("table", "jsonl"),
        default="table" if sys.stdout.isatty() else "jsonl",
        help="default: table on a terminal, jsonl elsewhere",
    )
    add_server_flags(parser, target=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
