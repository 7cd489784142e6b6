"""The contract between training and serving: text to token ids, pairs to packed rows, and back.

It needs numpy and tokenizers only, and its imports are relative, because Triton's Python backend loads this folder as
it lies here.
"""

from .config import ENCODING_FILE, TOKENIZER_FILE, EncodingError, PairEncodingConfig, encoding_hash
from .documents import AT_END, Document, DocumentIds, Truncation
from .encoder import PairEncoder
from .packing import INPUTS, Counts, FlatPairs, FloatArray, IntArray, Layout, PackedBatch, Pair, Rows, chunks, unpack

__all__ = [
    "AT_END",
    "ENCODING_FILE",
    "INPUTS",
    "TOKENIZER_FILE",
    "Counts",
    "Document",
    "DocumentIds",
    "EncodingError",
    "FlatPairs",
    "FloatArray",
    "IntArray",
    "Layout",
    "PackedBatch",
    "Pair",
    "PairEncoder",
    "PairEncodingConfig",
    "Rows",
    "Truncation",
    "chunks",
    "encoding_hash",
    "unpack",
]
