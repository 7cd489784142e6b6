"""A new version in a running Triton, by its explicit model control.

Triton loads the new version beside the old one, sends it every request from then on, and unloads the old one when its
last request is answered. A version that cannot be loaded changes nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import tritonclient.grpc as grpc
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from client import Connection, wire
from client import Document as ClientDocument
from client.errors import status_of
from engines.records import EngineError
from engines.repository.place import Place
from model_repository.tokenizer.pair_encoding import TOKENIZER_FILE, Document, PairEncoder

ADMIN_KEY = "DISRANKER_ADMIN_KEY"
HEADER = "triton-grpc-protocol-admin-key"
MODE = "start it with --model-control-mode=explicit --load-model=*"
TEXTS, PIECES = 16, 16  # of the vocabulary, by which two tokenizers are told apart


class RunningServer:
    """A server that serves a repository. All that its methods raise are EngineErrors. Close it.

    The key of its model control is read from the environment variable DISRANKER_ADMIN_KEY.
    """

    def __init__(self, connection: Connection, place: Place) -> None:
        (self.address,), self._limit_s = connection.servers, connection.timeout_s
        self._place, self._scorer = place, place.models.scorer
        self._client = grpc.InferenceServerClient(**connection.channel(self.address))
        self._headers = dict(connection.headers or {})
        if key := os.environ.get(ADMIN_KEY):
            self._headers[HEADER] = key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def check_tokenizer(self) -> None:
        """Raises EngineError unless the server's tokenizer encodes as the repository's does: it may have been loaded
        before a build replaced the files."""
        encoder = PairEncoder.load(self._place.tokenizer)
        query, texts = _texts(self._place.tokenizer / TOKENIZER_FILE)
        texts = texts[: encoder.config.max_documents]
        inputs = wire.inputs(query, [ClientDocument(title=text) for text in texts]).tensors
        asked = {
            "outputs": [grpc.InferRequestedOutput("token_ids")],
            "timeout": int(self._limit_s * 1e6),  # without, a server that has much to do would refuse it
        }
        answer = self._asked(self._client.infer, self._place.models.tokenizer, inputs, **asked)
        expected = encoder.encode(query, [Document(title=text, summary="") for text in texts]).token_ids
        if not np.array_equal(answer.as_numpy("token_ids"), expected):
            raise EngineError(
                f"{self.address} has another tokenizer loaded than {self._place.tokenizer} holds, so a new version "
                "would score what the old one read: start a second server with the new files, then stop this one"
            )

    def load(self, version: int) -> float:
        """Load the version that the configuration now names, and wait until it answers; the seconds that it took."""
        begun = time.monotonic()
        self._asked(self._client.load_model, self._scorer)
        if not self._asked(self._client.is_model_ready, self._scorer, str(version)):
            raise EngineError(
                f"{self.address} has loaded {self._scorer}, and not version {version}: it serves another repository "
                f"than {self._place.repository}, or with another --model-config-name"
            )
        return time.monotonic() - begun

    def load_again(self) -> None:
        """After a failure, when the files are as they were: Triton calls itself not ready until a load succeeds."""
        with suppress(EngineError):
            self._asked(self._client.load_model, self._scorer)

    def _asked(self, call: Any, *arguments: Any, **settings: Any) -> Any:
        try:
            return call(*arguments, **settings, headers=self._headers, client_timeout=self._limit_s)
        except InferenceServerException as error:
            raise EngineError(self._reason(error)) from error

    def _reason(self, error: InferenceServerException) -> str:
        status, message = status_of(error), str(error.message())
        if "is restricted" in message:
            return f"{self.address}: model control needs the key of the server: set it as {ADMIN_KEY}"
        if "explicit model load" in message:
            return f"{self.address} takes no new version while it runs: {MODE}"
        if status == "DEADLINE_EXCEEDED":
            return f"{self.address} gave no answer within {self._limit_s:g} s: raise --timeout"
        reason = " ".join(message.partition("At:")[0].split())[:300]
        return f"{self.address}: {reason} (it serves what it served before)"


def _texts(tokenizer: Path) -> tuple[str, list[str]]:
    """A query and documents out of pieces from the whole vocabulary."""
    pieces = sorted(Tokenizer.from_file(str(tokenizer)).get_vocab())
    chosen = pieces[:: max(1, len(pieces) // (TEXTS * PIECES))]
    texts = [" ".join(chosen[start : start + PIECES]) for start in range(0, len(chosen), PIECES)]
    return " ".join(chosen[:PIECES]), texts[:TEXTS]
