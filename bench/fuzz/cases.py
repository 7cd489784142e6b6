"""Requests that nobody meant to send, each a valid one with some of its parts changed.

Left out are shapes whose bytes do not fit in 63 bits: Triton 2.51 takes them for small ones, and its Python backend's
process dies (triton-inference-server/common #151 mends it; SECURITY.md).
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

ODD = [
    "",
    " ",
    "\x00",
    "\ud83d",
    "\U0001f680",
    "e\u0301",
    "\u202e",
    "[SEP] [CLS]",
    "中文",
    "a" * 300,
    "\ufeff",
    "%s{0}",
]
NUMBERS = [-(2**31), -5, -1, 0, 1, 2, 7, 255, 256, 257, 1000, 1001, 10**6, 10**8, 2**31 - 1]
DIMENSIONS = [-(2**63), -1, 0, 1, 2, 3, 1001, 2**31, 2**40]
BYTES_OF = {
    "BYTES": 0,
    "INT32": 4,
    "FP32": 4,
    "INT64": 8,
    "BOOL": 1,
    "UINT8": 1,
    "FP16": 2,
    "BF16": 2,
    "": 0,
    "INT9": 0,
}
LARGEST = 2**63 - 1
NAME = st.text("abcXYZ_", max_size=8)

text = st.sampled_from(ODD) | st.text(max_size=40) | st.text(st.characters(categories=["Cs", "Co", "Cn", "Mn"]))
number = st.sampled_from(NUMBERS) | st.integers(-(2**31), 2**31 - 1)


def _elements(values: list[bytes]) -> bytes:
    """BYTES as they go over the wire, each after its length."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def _strings(count: int) -> st.SearchStrategy[tuple[str, list[int], bytes]]:
    one = text.map(lambda value: value.encode("utf-8", "surrogatepass")) | st.binary(max_size=20)
    return st.lists(one, min_size=count, max_size=count).map(lambda values: ("BYTES", [count], _elements(values)))


def _integers(values: list[int]) -> tuple[str, list[int], bytes]:
    return "INT32", [len(values)], struct.pack(f"<{len(values)}i", *values)


@st.composite
def _texts(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 4))
    return {"QUERY": draw(_strings(1)), "TITLES": draw(_strings(count)), "SUMMARIES": draw(_strings(count))}


@st.composite
def _ids(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(0, 6), max_size=4))
    ids = draw(st.lists(number, min_size=sum(lengths), max_size=sum(lengths)))
    return {"QUERY": draw(_strings(1)), "DOCUMENT_IDS": _integers(ids), "DOCUMENT_LENGTHS": _integers(lengths)}


@st.composite
def _pairs(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(1, 6), max_size=4))
    ids = draw(st.lists(st.integers(0, 50) | number, min_size=sum(lengths), max_size=sum(lengths)))
    starts = draw(st.lists(st.integers(0, 3) | number, min_size=len(lengths), max_size=len(lengths)))
    return {"token_ids": _integers(ids), "lengths": _integers(lengths), "document_starts": _integers(starts)}


@st.composite
def _slots(draw: st.DrawFn) -> dict[str, Any]:
    rows, places = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    scores = "FP32", [rows, places], draw(st.binary(min_size=4 * rows * places, max_size=4 * rows * places))
    return {"scores": scores, "slots": _integers(draw(st.lists(st.integers(0, 8) | number, max_size=4)))}


MODELS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "ranker": _texts(), "ranker_tokens": _ids(), "tokenizer": _texts() | _ids(), "student": _pairs(),
    "scores": _slots(),
}  # fmt: skip


@st.composite
def _changed(draw: st.DrawFn, tensor: tuple[str, list[int], bytes]) -> tuple[str, list[int], bytes]:
    """The tensor with another type, shape or content."""
    kind, shape, content = tensor
    what = draw(st.sampled_from(["type", "shape", "content", "cut", "value"]))
    if what == "type":
        kind = draw(st.sampled_from(sorted(BYTES_OF)))
    elif what == "shape":
        shape = draw(st.lists(st.sampled_from(DIMENSIONS), max_size=3))
    elif what == "content":
        content = draw(st.binary(max_size=40))
    elif what == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    else:
        place = draw(st.integers(0, max(0, len(content) - 4)))
        content = content[:place] + struct.pack("<i", draw(number)) + content[place + 4 :]
    if abs(math.prod(shape)) * BYTES_OF[kind] > LARGEST:
        shape = [1]
    return kind, shape, content


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """A ModelInferRequest for a model of the repository."""
    model = draw(st.sampled_from(sorted(MODELS)))
    tensors = [*draw(MODELS[model]).items()]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(tensors) - 1))
        name, tensor = tensors[place]
        if draw(st.integers(0, 9)):
            tensors[place] = name, draw(_changed(tensor))
        else:
            tensors[place:] = [(draw(NAME | st.sampled_from(["TITLES", "slots"])), tensor), *tensors[place + 2 :]]
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, (kind, shape, content) in tensors:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(content)
    _add_oddities(draw, request)
    return request


def _add_oddities(draw: st.DrawFn, request: Any) -> None:
    """To one request in four add what lies beside the tensors: a version, outputs, parameters, content of no tensor."""
    odd = draw(st.integers(0, 27))
    if odd == 0:
        request.model_version = draw(st.sampled_from(["1", "9", "x"]))
    elif odd in (1, 2):
        request.outputs.add(name=draw(st.sampled_from(["SCORES", "TRUNCATED", "slots", "input_ids"])))
    elif odd in (3, 4):
        name = draw(st.sampled_from(["priority", "timeout", "sequence_id", "none"]))
        request.parameters[name].int64_param = draw(st.sampled_from([0, 1, -1, 10**6, LARGEST]))
    elif odd == 5 and request.raw_input_contents:
        request.raw_input_contents.pop()
    elif odd == 6:
        request.raw_input_contents.append(b"\x01")
    elif odd == 7 and request.inputs:
        region = request.inputs[0].parameters
        region["shared_memory_region"].string_param, region["shared_memory_byte_size"].int64_param = "none", 4


scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3))


@st.composite
def rerank_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A route of the gateway and a body for it."""
    route = draw(st.sampled_from(["/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/score"]))
    document = text | st.fixed_dictionaries({"title": text, "summary": text}) | st.dictionaries(text, scalar)
    body: dict[str, Any] = {"query": draw(text), "return_documents": draw(st.booleans())}
    body[draw(st.sampled_from(["documents", "texts", "input", "text_2"]))] = draw(st.lists(document, max_size=4))
    for _ in range(draw(st.integers(0, 2))):
        field = draw(st.sampled_from([*body, "model", "top_n", "top_k", "rank_fields", "truncate", "text_1"]))
        body[field] = draw(anything)
    written = json.dumps(body).encode()
    return route, draw(st.just(written) | st.integers(0, len(written)).map(lambda cut: written[:cut]) | st.binary())


@st.composite
def infer_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A model's path at Triton's HTTP endpoint, and a JSON body for it."""
    count = draw(st.integers(0, 3))
    tensors: list[Any] = [
        {"name": name, "shape": [size], "datatype": "BYTES", "data": draw(st.lists(text, min_size=size, max_size=size))}
        for name, size in (("QUERY", 1), ("TITLES", count), ("SUMMARIES", count))
    ]
    for _ in range(draw(st.integers(0, 2))):
        tensors[draw(st.integers(0, 2))] = draw(anything)
    body = json.dumps({"inputs": tensors}).encode()
    return "/v2/models/ranker/infer", draw(st.just(body) | st.just(body[:-1]) | st.binary(max_size=40))


documents = st.lists(st.tuples(text, text), min_size=1, max_size=6)
