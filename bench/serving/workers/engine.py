"""The engine of a built version without a server, on pairs encoded beforehand, and matrices of its shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.serving.load import Score
from bench.serving.worker import Worker, main
from bench.serving.workers import matrices
from engines.records import runner
from engines.table import ENGINES
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import Document, FlatPairs, PairEncoder

FULL_ROWS = 64


class EngineWorker(Worker):
    """An engine in this process, which measures documents and tokens a second."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._config = json.loads((Path(setup["checkpoint"]) / "config.json").read_text(encoding="utf-8"))
        self._encoder, self._precision = PairEncoder.load(setup["checkpoint"]), setup["precision"]
        versions = [path for path in (Path(setup["repository"]) / "student").iterdir() if path.name.isdigit()]
        newest = max(versions, key=lambda path: int(path.name))
        self._library = str(json.loads((newest / "manifest.json").read_text(encoding="utf-8"))["engine"])
        self._run = runner(PairScorer.load(newest, ENGINES[self._library].serving_class()))
        self.versions = {self._library: version(self._library)}

    def connect(self) -> Score:
        return lambda query, documents: list(self._run(self._pairs(query, documents)))

    def alone(self, documents: int, seconds: float, seed: int) -> dict[str, float]:
        """The first request of a cell, encoded before the clock starts, and pairs that fill half a row each."""
        query, texts = next(self.traffic.requests(documents, 0.0, seed))
        pairs = self._pairs(query, texts)
        tokens = len(pairs.token_ids)
        runs_a_second = _rate(lambda: self._run(pairs), seconds)
        full = self._full(pairs)
        return {
            "documents_per_second": documents * runs_a_second,
            "full_tokens_per_second": len(full.token_ids) * _rate(lambda: self._run(full), seconds),
            "mean_tokens": tokens / documents,
            "fill": tokens / self._encoder.pack(pairs).segment_ids.size,
        }

    def matrix_limit(self, seconds: float) -> dict[str, Any]:
        """Operations a second of the model's matrix products, and how many a token needs."""
        products = matrices.widths(self._config)
        run, runs_in = matrices.CHAINS[self._library](products, self._precision)
        per_token = matrices.flop_per_token(products)
        rate = matrices.TOKENS * per_token * _rate(run, seconds)
        return {"flop_per_second": rate, "flop_per_token": per_token, "runs_in": runs_in}

    def _pairs(self, query: str, texts: Sequence[str]) -> FlatPairs:
        return self._encoder.encode(query, [Document(title="", summary=text) for text in texts])

    def _full(self, pairs: FlatPairs) -> FlatPairs:
        """Pairs of equal length, two of which fill a row."""
        lengths = np.full(2 * FULL_ROWS, self._encoder.config.row_length // 2)
        ids = np.random.default_rng(0).choice(pairs.token_ids, int(lengths.sum())).astype(np.int32)
        return FlatPairs(ids, lengths, lengths, np.zeros(len(lengths), np.bool_))


def _rate(run: Callable[[], object], seconds: float) -> float:
    """Runs a second, after one that does not count; at least two."""
    run()
    count, begin = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - begin < seconds:
        run()
        count += 1
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main(lambda setup: nullcontext(EngineWorker(setup)))
