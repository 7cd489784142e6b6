"""Queries that a causal LM writes for documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from trainer.checkpoints.load import NO_CODE, load_causal_lm, reading, to_device
from trainer.collection.words import Made, shuffled
from trainer.data.records import DataError, JudgedDocument
from trainer.measures.baselines import RUN
from trainer.scoring.checkpoint import PRECISIONS, ScoringArguments

PLACE = "{document}"
PROMPT = "Document: {document}\nA short search query that this document answers: "
DOCUMENT_TOKENS = 256  # of a document, unless the user says otherwise
QUERY_TOKENS = 32


class QueryWriter:
    """A causal LM, of which greedy decoding makes one query for each document.

    An LLM that chats gets the prompt as a message. Raises CheckpointError for another model, DataError for a prompt
    without a place for the document.
    """

    def __init__(
        self, directory: str, prompt: str, arguments: ScoringArguments, document_tokens: int = DOCUMENT_TOKENS
    ) -> None:
        if PLACE not in prompt:
            raise DataError(f"--prompt has no {PLACE}, where the text is put")
        self._prompt, self._document_tokens = prompt, document_tokens
        self._documents_per_pass = arguments.rows_per_batch
        with reading(directory, "a tokenizer"):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left", **NO_CODE)
        self._model = to_device(load_causal_lm(directory).to(PRECISIONS[arguments.precision]).eval())
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def queries(self, documents: Sequence[JudgedDocument], draw: random.Random) -> Made:
        """One query of one document after the other; those without a word are left out."""
        places = shuffled(range(len(documents)), draw)
        for at in range(0, len(places), self._documents_per_pass):
            part = places[at : at + self._documents_per_pass]
            for place, text in zip(part, self._written([documents[place].text for place in part]), strict=True):
                if RUN.search(text):
                    yield text, place

    @torch.inference_mode()
    def _written(self, texts: Sequence[str]) -> list[str]:
        """The first line that the model writes to each text."""
        prompts = [self._prompt_of(text) for text in texts]
        own = self._tokenizer.chat_template is None  # a chat template writes the control tokens itself
        inputs = self._tokenizer(
            prompts, return_tensors="pt", padding=True, return_token_type_ids=False, add_special_tokens=own
        )
        ids = self._model.generate(
            **inputs.to(self._model.device),
            max_new_tokens=QUERY_TOKENS,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        answers = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        lines = (next(iter(answer.strip().splitlines()), "") for answer in answers)
        return [" ".join(line.split()).strip(" \"'") for line in lines]

    def _prompt_of(self, text: str) -> str:
        ids = self._tokenizer(text, add_special_tokens=False, truncation=True, max_length=self._document_tokens)
        prompt = self._prompt.replace(PLACE, self._tokenizer.decode(ids["input_ids"], skip_special_tokens=True))
        if self._tokenizer.chat_template is None:
            return prompt
        message = [{"role": "user", "content": prompt}]
        chat: str = self._tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return chat
