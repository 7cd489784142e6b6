"""A published reranker, or a checkpoint of ours, as an engine for this machine in a model repository of its own."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from engines.build import build_version
from engines.job import BuildArguments
from engines.records import EngineError
from model_repository.tokenizer.pair_encoding import ENCODING_FILE
from trainer import init
from trainer.checkpoints.load import NO_CODE, CheckpointError, reading, require_checkpoint
from trainer.checkpoints.published import RerankerArguments, has_head
from trainer.command import quiet

LONGEST_PAIR = 512  # tokens, where the model reads so many
ROW_TOKENS = 2048  # of an engine call: what measured builds of MiniLM chose
QUERIES, DOCUMENTS, RELEVANT = 16, 12, 4  # of generated texts; so many of the documents are relevant
SHORTEST = 40  # characters of a generated document


def build(model: Path, repository: Path, data: Sequence[str], calibration: Sequence[str], precision: str) -> None:
    """Build the engine of a checkpoint's directory into a new repository.

    Without ``data`` the gate judges on generated texts. Raises DisRankerError for what is no reranker, and where no
    engine passes.
    """
    quiet()
    with tempfile.TemporaryDirectory(prefix="serve-") as directory:
        checkpoint = model if (model / ENCODING_FILE).is_file() else _encoded(model, Path(directory, "checkpoint"))
        texts = [*data] or [str(write_texts(Path(directory, "texts.jsonl")))]
        row_length = json.loads((checkpoint / ENCODING_FILE).read_text(encoding="utf-8"))["row_length"]
        build_version(
            BuildArguments(
                checkpoint=str(checkpoint),
                data=texts,
                engine="auto",
                precision=precision,
                calibration=[*calibration],
                rows_per_call=max(1, ROW_TOKENS // row_length),
                model_repository=str(repository),
            )
        )


def _encoded(model: Path, checkpoint: Path) -> Path:
    """The published model with the pair encoding that it was trained with, as ``trainer.init`` makes it."""
    require_checkpoint(model)
    with reading(model, "a model with a tokenizer"):
        config = AutoConfig.from_pretrained(model, **NO_CODE)
        longest = min(AutoTokenizer.from_pretrained(model, **NO_CODE).model_max_length, LONGEST_PAIR)
    if not has_head(config):
        kind = " ".join(config.architectures or ["model of no known kind"])
        raise CheckpointError(
            f"{model}: no trained score head, it is a {kind}; LLMs that answer yes or no become teachers "
            "(docs/teachers.md)"
        )
    arguments = init.InitArguments(str(checkpoint), pretrained=str(model), max_pair_tokens=longest, row_length=longest)
    init.make(arguments, RerankerArguments())
    return checkpoint


def write_texts(path: Path) -> Path:
    """Judged queries out of Python's own documentation, which each installation has: a section's title asks, its
    paragraphs are relevant, those of other sections are not."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise EngineError("this Python lacks the documentation that texts are made of: give --data") from error
    draw = random.Random(0)
    sections = {title: found for title, *found in map(_paragraphs, topics.values()) if len(found) >= RELEVANT}
    titles = draw.sample(sorted(sections), QUERIES)
    lines = []
    for number, title in enumerate(titles):
        others = draw.sample([other for other in sorted(sections) if other != title], DOCUMENTS - RELEVANT)
        texts = [(text, 1) for text in draw.sample(sections[title], RELEVANT)]
        texts += [(draw.choice(sections[other]), 0) for other in others]
        documents = [
            {"doc_id": f"d{place}", "title": "", "summary": text, "label": label}
            for place, (text, label) in enumerate(texts)
        ]
        lines.append(json.dumps({"query_id": f"generated-{number}", "query": title, "documents": documents}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _paragraphs(section: str) -> list[str]:
    """The title of a section, and its paragraphs that are long enough to be documents."""
    title, *paragraphs = (" ".join(part.split()) for part in re.split(r"\n\*+\n|\n\n", section))
    return [title.strip('"'), *(text for text in paragraphs if len(text) >= SHORTEST)]
