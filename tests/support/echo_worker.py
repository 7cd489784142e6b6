"""A worker of bench.serving that needs no library: a document's score is its length, as in

python -m tests.support.echo_worker
"""

from __future__ import annotations

import time
from contextlib import nullcontext

from bench.serving.worker import InProcess, main


class EchoWorker(InProcess):
    def __init__(self) -> None:
        super().__init__(1, {"echo": "1"})

    def score(self, query: str, documents: tuple[str, ...]) -> list[float]:
        time.sleep(1e-4 / self.batch_size)  # the larger its batches are, the faster it is
        if not query:
            raise ValueError("no query")
        return [float(len(document)) for document in documents]


if __name__ == "__main__":
    main(lambda setup: nullcontext(EchoWorker()))
