"""Published rerankers that are LLMs: how each asks whether a document is relevant, and which logits are its score.

The answer is the logit of the token ``yes`` minus that of ``no``, or that of ``yes`` alone, at the last token of the
prompt. An encoder with one logit is a scorer as it is, and needs no entry here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INSTRUCTION = "{instruction}"
SPELT_AS_CONTROL = re.compile(r"<\|\w+\|>|</?think>|<bos>")  # as the families below spell theirs


@dataclass(frozen=True)
class Reranker:
    """``prompt`` as in PairEncodingConfig, with a place for an instruction; without one its line is left out.

    A checkpoint is of the family if its name matches ``named`` and its configuration has the ``model_type``.
    """

    prompt: tuple[str, ...]
    yes: str | None
    no: str | None
    instruction: str = ""
    named: str = ""
    model_type: str = ""
    source: str = ""

    @property
    def score(self) -> str:
        """The score in words."""
        if self.yes is None:
            return "its own score head"
        return f"the logit of {self.yes!r}" + (f" minus that of {self.no!r}" if self.no else "")


FAMILIES = {
    "qwen3-reranker": Reranker(
        prompt=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
            "<Instruct>: {instruction}\n",
            "<Query>: {query}\n",
            "<Document>: {document}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        yes="yes",
        no="no",
        instruction="Given a web search query, retrieve relevant passages that answer the query",
        named=r"qwen3-reranker",
        model_type="qwen3",
        source="https://huggingface.co/Qwen/Qwen3-Reranker-0.6B",
    ),
    "mxbai-rerank-v2": Reranker(
        prompt=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n",
            "instruction: {instruction}\nquery: {query}",
            "\n",
            "document: {document}",
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        yes="1",
        no="0",
        named=r"mxbai-rerank-\w+-v2",
        model_type="qwen2",
        source="https://github.com/mixedbread-ai/mxbai-rerank/blob/main/mxbai_rerank/mxbai_rerank_v2.py",
    ),
    "bge-reranker-v2-gemma": Reranker(
        prompt=("<bos>", "A: {query}", "\n", "B: {document}", "\n", "{instruction}"),
        yes="Yes",
        no=None,
        instruction="Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
        named=r"bge-reranker-v2-gemma",
        model_type="gemma",
        source="https://huggingface.co/BAAI/bge-reranker-v2-gemma",
    ),
}
