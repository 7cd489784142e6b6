"""Requests for servers of tests, and what is expected of an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from client import RankingClient
from model_repository.tokenizer.pair_encoding import Document, DocumentIds
from tests.support.checkpoints import TEXT
from tests.support.servers import Expected, Reference, Server

# Against PyTorch in float32, logits. fp32: by other kernels, and the gate's own limit. bf16 has 8 bits of mantissa:
# each of the some ten products on a token's way through two layers is rounded by up to 2**-9 of a value around 1.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1}
TOLERANCE = TOLERANCES["fp32"]
QUERY = "garden bridge"
STRANGE = ["", " ", "中文 标题", "🚀🙂", "e\u0301", "[SEP] [CLS]", "\u202eright to left", "\x00 nul", "\ud83d alone"]


def documents(count: int, longest: int = 300, seed: int = 0) -> list[Document]:
    """Titles and summaries of every kind, up to ``longest`` words."""
    draw = random.Random(seed)
    words = [*TEXT.split(), *STRANGE]
    lengths = [draw.choice((0, 3, 30, longest)) for _ in range(count)]
    return [Document(title=_words(draw, words, 6), summary=_words(draw, words, length)) for length in lengths]


def _words(draw: random.Random, words: Sequence[str], most: int) -> str:
    return " ".join(draw.choices(words, k=draw.randint(0, most)))


def answer(client: RankingClient, query: str, candidates: Sequence[Document]) -> Expected:
    ranked = sorted(client.rank(query, [asdict(document) for document in candidates]), key=lambda found: found.index)
    return Expected(np.array([found.score for found in ranked]), [found.truncated for found in ranked])


def every_length(reference: Reference) -> list[Document]:
    """One token to more than a row, and texts that int8 was not calibrated on."""
    candidates = [
        Document(title="", summary="river " * tokens) for tokens in range(reference.encoder.config.row_length)
    ]
    return [*candidates, Document(title="中文 标题", summary="🚀🙂"), Document(title="", summary="")]


def assert_equal(got: Expected, expected: Expected) -> None:
    np.testing.assert_allclose(got.scores, expected.scores, atol=TOLERANCE, rtol=0)
    assert got.truncated == expected.truncated


def strings(**arrays: object) -> list[grpc.InferInput]:
    """BYTES tensors by their names."""
    tensors = []
    for name, values in arrays.items():
        array = np.array(values, dtype=np.object_)
        tensors.append(grpc.InferInput(name, array.shape, "BYTES"))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def by_ids(server: Server, query: str, ids: DocumentIds) -> Expected:
    """The answer of ranker_tokens."""
    with grpc.InferenceServerClient(server.url) as raw:
        result = raw.infer("ranker_tokens", [*strings(QUERY=[query.encode()]), *id_inputs(ids)])
    return Expected(result.as_numpy("SCORES"), result.as_numpy("TRUNCATED").tolist())


def id_inputs(ids: DocumentIds) -> list[grpc.InferInput]:
    """The tensors of documents that are tokenised."""
    return tensors(DOCUMENT_IDS=ids.token_ids.astype(np.int32), DOCUMENT_LENGTHS=ids.lengths.astype(np.int32))


def student_inputs(lengths: list[int], /, **changed: list[int]) -> list[grpc.InferInput]:
    """The inputs of a student in the Python backend: pairs of these lengths."""
    named = {"token_ids": [7] * sum(lengths), "lengths": lengths, "document_starts": [1] * len(lengths), **changed}
    return tensors(**{name: np.array(values, dtype=np.int32) for name, values in named.items()})


def tensors(**arrays: Any) -> list[grpc.InferInput]:
    """Tensors of numbers by their names."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs
