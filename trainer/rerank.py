"""Rerank a run off line: a checkpoint scores each query's first documents; those below keep their order.

    python -m trainer.rerank --model runs/student --data test.jsonl --run today.run --output reranked.run

Under ``torchrun`` processes share out the queries.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.addresses import shown
from trainer.command import command, parse
from trainer.data.rankings import best_first, candidates, read_run, write_run
from trainer.data.records import DataError, Scores, read_groups
from trainer.measures.metrics import ranked
from trainer.scoring.checkpoint import LESS_MEMORY, PackedScoringArguments, processes_together
from trainer.scoring.memory import naming_flags
from trainer.storage import check_writable


@dataclass(kw_only=True)
class RerankArguments(PackedScoringArguments):
    """The run, the texts of its queries and documents, and the checkpoint."""

    model: str = field(metadata={"help": "Checkpoint of a scorer."})
    data: list[str] = field(metadata={"help": "Queries with the texts of their documents (JSONL, Parquet)."})
    run: str = field(metadata={"help": "TREC run with the candidates."})
    output: str = field(metadata={"help": "TREC run to write; its tag is the checkpoint's name."})
    depth: int | None = field(
        default=None, metadata={"help": "Documents of each query to score, all by default; the data need no others."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and self.depth < 1:
            raise DataError(f"--depth must be at least 1, not {self.depth}")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, RerankArguments)
    check_writable(arguments.output)
    run, groups = read_run(arguments.run), read_groups(*arguments.data)
    wanted = candidates(run, groups, arguments.depth, arguments.run)
    scorer = arguments.scorer(arguments.model)
    with naming_flags(LESS_MEMORY):
        scores = scorer.score_all(wanted)
    if not processes_together().is_main_process:
        return
    reranked = {query_id: reordered(run[query_id], scores[query_id]) for query_id in run if query_id in scores}
    write_run(arguments.output, reranked, tag="_".join(Path(arguments.model).resolve().name.split()))
    for note in _notes(arguments.run, run, scores, len(groups)):
        print(note, file=sys.stderr)
    print(shown(f"{arguments.output}: {sum(map(len, scores.values())):,} pairs of {len(scores):,} queries reranked"))


def reordered(before: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, float]:
    """All documents of a query, best first: those with ``scores``, then the others in their order, with lower ones.

    Equal scores are in the order that trec_eval gives them.
    """
    first = ranked(scores)
    below = (doc_id for doc_id in best_first(before) if doc_id not in scores)
    lowest = scores[first[-1]]
    return {doc_id: scores[doc_id] for doc_id in first} | {
        doc_id: lowest - place for place, doc_id in enumerate(below, start=1)
    }


def _notes(source: str, run: Scores, scores: Scores, queries: int) -> Iterator[str]:
    if without_text := [query_id for query_id in run if query_id not in scores]:
        yield (
            f"{source}: {len(without_text):,} of its {len(run):,} queries are not in the data, such as "
            f"{without_text[0]!r}: they are left out"
        )
    if len(scores) < queries:
        yield f"{source}: {len(scores):,} of {queries:,} queries of the data are in it; the others are left out"


if __name__ == "__main__":
    sys.exit(main())
