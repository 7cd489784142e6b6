"""Where a teacher's scores come from, by the flags of ``trainer.score``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from trainer.cluster import ClusterArguments
from trainer.data.records import DataError
from trainer.scoring.bi_encoder import BiEncoder, Similarity
from trainer.scoring.checkpoint import GroupScorer, PackedScoringArguments
from trainer.scoring.servers import TritonScorer
from trainer.storage import fetched

Scorer = GroupScorer | BiEncoder | TritonScorer


@dataclass(kw_only=True)
class ScoreArguments(ClusterArguments, PackedScoringArguments):
    """The teacher, the pairs and the output."""

    data: list[str] = field(
        metadata={"help": "Pool of pairs: JSONL, Parquet, folders of such files, or ir_datasets:ID."}
    )
    output: str = field(metadata={"help": "Parquet file to write: query_id, doc_id, score, teacher."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint of the teacher."})
    bi_encoder: str | None = field(
        default=None, metadata={"help": "Bi-encoder of sentence-transformers, a directory or hub id: a weak teacher."}
    )
    similarity: Similarity = field(
        default="cosine",
        metadata={
            "help": "How the bi-encoder compares: its two vectors, or the states of the texts' tokens (maxsim: of each "
            "token of the query, the cosine with the most similar one of the document, on average)."
        },
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Tokens that the bi-encoder reads of a text; as it says itself by default."}
    )
    run: list[str] | None = field(
        default=None,
        metadata={
            "help": "TREC run file whose order replaces a teacher's scores. Of several, what the first leaves out "
            "comes after it, in the order of the next."
        },
    )
    triton: list[str] | None = field(
        default=None, metadata={"help": "HOST:PORT (gRPC) of each server that serves the teacher."}
    )
    triton_model: str = field(default="teacher_ranker", metadata={"help": "Ensemble that the servers rank with."})
    in_flight: int = field(default=32, metadata={"help": "Queries under way for each server."})
    timeout_s: float = field(
        default=600.0, metadata={"help": "Seconds that a query may take, a restart of its server included."}
    )
    max_failed: int = field(
        default=0,
        metadata={"help": "Queries that the servers of --triton may refuse; they are in OUTPUT.failed.jsonl."},
    )
    pairs_per_shard: int = field(
        default=100_000, metadata={"help": "Pairs of a shard, about; a finished shard is never scored again."}
    )

    def __post_init__(self) -> None:
        PackedScoringArguments.__post_init__(self)
        ClusterArguments.__post_init__(self)
        sources = (self.model, self.triton, self.bi_encoder, self.run)
        if sum(source is not None for source in sources) != 1:
            raise DataError(
                "give either --model (a teacher's checkpoint), --triton (its servers), --bi_encoder (a weak teacher) "
                "or --run (TREC runs)"
            )
        if self.bi_encoder is None and (self.max_tokens is not None or self.similarity != "cosine"):
            raise DataError("--max_tokens and --similarity are for a --bi_encoder")
        if self.attention != "dense" and self.model is None:
            raise DataError("--attention is for a --model, whose rows are packed")
        if min(self.pairs_per_shard, self.in_flight) < 1 or self.timeout_s <= 0:
            raise DataError("--pairs_per_shard and --in_flight must be at least 1, --timeout_s above 0")
        if self.max_failed < 0 or (self.max_failed and self.triton is None):
            raise DataError("--max_failed must be at least 0, and is for --triton: else no query is refused for itself")
        if self.ray is not None and self.run is not None:
            raise DataError("--ray is for a teacher that scores; a --run has an order already")


@contextmanager
def scorer_of(arguments: ScoreArguments) -> Iterator[Scorer]:
    """The teacher, loaded here or behind its servers."""
    if arguments.model is not None:
        yield arguments.scorer(fetched(arguments.model))
        return
    if arguments.bi_encoder is not None:
        yield BiEncoder.load(fetched(arguments.bi_encoder), arguments, arguments.max_tokens, arguments.similarity)
        return
    with closing(
        TritonScorer(arguments.triton or [], arguments.triton_model, arguments.in_flight, arguments.timeout_s)
    ) as scorer:
        yield scorer
