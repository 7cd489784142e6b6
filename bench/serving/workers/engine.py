"""The limit: the engine of a built version alone, on rows that are packed beforehand, and matrices of its shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.serving.job import Option
from bench.serving.load import LoadError, Score
from bench.serving.traffic import Traffic
from bench.serving.worker import main
from bench.serving.workers import matrices
from engines.library import serving_class
from engines.table import ENGINES
from model_repository.student.processor_engine import ProcessorEngine, Rows
from model_repository.tokenizer.pair_encoding import Document, PackedBatch, PairEncoder, unpack

FULL_ROWS = 64


class EngineSystem:
    """Answers documents and tokens a second; its scores are those of the rows, without a server."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._config = json.loads((Path(setup["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
        self._encoder = PairEncoder.load(setup["checkpoint"])
        versions = [path for path in (Path(setup["repository"]) / "student").iterdir() if path.name.isdigit()]
        newest = max(versions, key=lambda path: int(path.name))
        self._library = str(json.loads((newest / "manifest.json").read_text(encoding="utf-8"))["engine"])
        self._engine = ProcessorEngine.load(newest, serving_class(ENGINES[self._library]))
        self.versions = {self._library: version(self._library)}

    def use(self, option: Option) -> None:
        if option:
            raise LoadError("a built engine takes no other settings")

    def connect(self) -> Score:
        def score(query: str, documents: tuple[str, ...]) -> list[float]:
            batch = self._encoder.pack(self._encoder.encode(query, [Document("", text) for text in documents]))
            return list(unpack(self._engine.score_packed(batch[:-1]), batch.slots))

        return score

    def alone(self, traffic: Traffic, documents: int, seconds: float, seed: int) -> dict[str, float]:
        """The first request of a cell, packed before the clock starts, and full rows of one token after another."""
        query, texts = next(traffic.requests(documents, 0.0, seed))
        batch = self._encoder.pack(self._encoder.encode(query, [Document("", text) for text in texts]))
        tokens = int((batch.segment_ids > 0).sum())
        runs_a_second = _rate(lambda: self._engine.score_packed(batch[:-1]), seconds)
        full = self._full(batch)
        return {
            "documents_per_second": documents * runs_a_second,
            "tokens_per_second": tokens * runs_a_second,
            "full_tokens_per_second": full[0].size * _rate(lambda: self._engine.score_packed(full), seconds),
            "mean_tokens": tokens / documents,
            "fill": tokens / batch.segment_ids.size,
        }

    def matrix_limit(self, traffic: Traffic, precision: str, seconds: float) -> dict[str, Any]:
        """Operations a second of the model's matrix products, and how many a token needs."""
        shape = matrices.Shape.of(self._config)
        run, runs_in = matrices.CHAINS[self._library](shape, precision)
        per_token = shape.flop_per_token()
        return {
            "flop_per_second": matrices.TOKENS * per_token * _rate(run, seconds),
            "flop_per_token": per_token,
            "runs_in": runs_in,
        }

    def _full(self, batch: PackedBatch) -> Rows:
        """Rows in which every slot is a token: two pairs in each."""
        length, slots = batch.input_ids.shape[1], batch.pool_positions.shape[1]
        half = length // 2
        draw = np.random.default_rng(0)
        ids = draw.choice(batch.input_ids[batch.segment_ids > 0], (FULL_ROWS, length)).astype(np.int32)
        positions = np.concatenate([np.arange(half), np.arange(length - half)]).astype(np.int32)
        segments = np.repeat(np.array([1, 2], np.int32), [half, length - half])
        pools = np.zeros((FULL_ROWS, slots), np.int32)
        pools[:, 1] = half
        rows = {
            "input_ids": ids,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.tile(positions, (FULL_ROWS, 1)),
            "segment_ids": np.tile(segments, (FULL_ROWS, 1)),
            "pool_positions": pools,
        }
        return tuple(rows[name] for name in PackedBatch._fields[:-1])


def _rate(run: Callable[[], object], seconds: float) -> float:
    """Runs a second, after one that does not count; at least two."""
    run()
    count, begin = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - begin < seconds:
        run()
        count += 1
    return count / (time.perf_counter() - begin)


@contextmanager
def opened(setup: dict[str, Any]) -> Iterator[EngineSystem]:
    yield EngineSystem(setup)


if __name__ == "__main__":
    main(opened)
