"""Tiny checkpoints and judged queries that tests share: real tokenizers and real models, with drawn weights."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncodingConfig
from trainer.data.rankings import write_run, write_scores
from trainer.data.records import QueryGroup, read_groups
from trainer.packed.heads import give_late_interaction, last_layer_of_head
from trainer.training.batches import TrainingGroup

TEXT = """
river bridge engine market garden window planet silver copper forest winter summer doctor teacher lesson recipe
bread cheese apple tunnel harbor captain letter number paper music guitar violin theatre cinema camera
"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LIMITS = {"max_query_tokens": 12, "max_pair_tokens": 48, "row_length": 64, "slots_per_row": 4, "max_documents": 40}
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
ENCODER_NAMES = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
# The shape of a model that is built from its configuration alone.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
    "initializer_range": 0.3,
    "vocab_size": 400,
    "pad_token_id": 0,
}
SPREAD = 0.2  # drawn at the usual 0.02, weights this few would score all pairs alike


def tiny_bert(directory: Path, *, seed: int = 0, layers: int = 2, **encoding: Any) -> Path:
    """A BERT scorer with a WordPiece tokenizer; ``encoding`` overrides PairEncodingConfig."""
    settings = {"style": "encoder", "start_token": "[CLS]", "end_token": "[SEP]", **encoding}
    shape = {"num_hidden_layers": layers, "num_attention_heads": 2, "max_position_embeddings": 256}
    return _saved(directory, "bert", _wordpiece(), seed, settings, shape)


def late_interaction_of(make: Callable[..., Path], directory: Path, **encoding: Any) -> Path:
    """One of the encoders here with late interaction, its weights drawn."""
    scorer = AutoModelForSequenceClassification.from_pretrained(make(directory, **encoding))
    give_late_interaction(scorer)
    torch.nn.init.normal_(last_layer_of_head(scorer).weight)
    scorer.save_pretrained(directory)
    return directory


def tiny_roberta(directory: Path, *, seed: int = 0, layers: int = 2, family: str = "roberta", **encoding: Any) -> Path:
    """A RoBERTa scorer as the hub has them: two separators, positions from 2 on, no token types."""
    tokenizer = (byte_level if family == "roberta" else unigram)(ROBERTA_TOKENS, **NAMES, **ENCODER_NAMES)
    template = {"style": "encoder", "start_token": "<s>", "end_token": "</s>", "separators": 2, "position_offset": 2}
    size = {"num_hidden_layers": layers, "num_attention_heads": 2}
    shape = {**size, "max_position_embeddings": 130, "type_vocab_size": 1}
    return _saved(directory, family, tokenizer, seed, {**template, **encoding}, shape)


def tiny_xlm_roberta(directory: Path, **encoding: Any) -> Path:
    """The same with XLM-R's kind of tokenizer, SentencePiece's Unigram."""
    return tiny_roberta(directory, family="xlm-roberta", **encoding)


def tiny_modernbert(directory: Path, *, seed: int = 0, layers: int = 2, **encoding: Any) -> Path:
    """A ModernBERT scorer with BERT's template and no token types; its second layer sees 8 tokens to either side."""
    tokenizer = _wordpiece()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    settings = {"style": "encoder", "start_token": "[CLS]", "end_token": "[SEP]", **encoding}
    control = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    size = {"num_hidden_layers": layers, "num_attention_heads": 2, "local_attention": 16}
    shape = {**size, "max_position_embeddings": 256, **control}
    return _saved(directory, "modernbert", tokenizer, seed, settings, shape)


def tiny_llama(directory: Path, *, seed: int = 0, layers: int = 2, **encoding: Any) -> Path:
    """A Llama scorer with a byte-level BPE; ``encoding`` overrides PairEncodingConfig."""
    template = {"style": "decoder", "start_token": "<s>", "end_token": "</s>"}
    prefixes = {"query_prefix": "Query: ", "document_prefix": " Document: "}
    tokenizer = byte_level(["<pad>", "<unk>", "<s>", "</s>"], **NAMES)
    shape = {"num_hidden_layers": layers, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return _saved(directory, "llama", tokenizer, seed, {**template, **prefixes, **encoding}, shape)


def tiny_llm(directory: Path) -> Path:
    """The body of ``tiny_llama`` as a causal LM."""
    tiny_llama(directory)
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(directory)
    return directory


def tiny_bi_encoder(directory: Path, *, prompts: dict[str, str] | None = None) -> Path:
    """A bi-encoder of sentence-transformers with the body of ``tiny_bert``, which reads 32 tokens."""
    from sentence_transformers import SentenceTransformer  # not before: it takes seconds, and few tests need it
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    body = Transformer(str(tiny_bert(directory)), max_seq_length=32)
    pooling = Pooling(body.get_embedding_dimension(), "mean")
    shutil.rmtree(directory)
    SentenceTransformer(modules=[body, pooling], prompts=prompts, device="cpu").save(str(directory))
    return directory


def _saved(
    directory: Path, family: str, tokenizer: PreTrainedTokenizerFast, seed: int, encoding: dict[str, Any],
    shape: dict[str, int],
) -> Path:  # fmt: skip
    torch.manual_seed(seed)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    size = {"vocab_size": len(tokenizer), "initializer_range": SPREAD}
    config = AutoConfig.for_model(family, **{**SMALL, **size, **ids, **shape})
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    model.eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    PairEncodingConfig(**{**LIMITS, **encoding}).save(directory / ENCODING_FILE)
    return directory


def write_groups(
    path: Path, queries: int = 4, documents: int = 6, seed: int = 0, name: str = "q", weights: Sequence[float] = (1.0,)
) -> Path:
    """Judged queries ``q0``.. (by ``name``) with documents ``d0``.. as JSONL; every second document carries a label.

    The queries have the ``weights`` in turn.
    """
    draw = random.Random(seed)
    lines = []
    for query in range(queries):
        candidates = [
            {
                "doc_id": f"d{index}",
                "title": _phrase(draw, 2, 4),
                "summary": _phrase(draw, 1, 20),
                "label": draw.randint(0, 3) if index % 2 == 0 else None,
                "clicks": draw.randint(0, 5),
            }
            for index in range(documents)
        ]
        record = {"query_id": f"{name}{query}", "query": _phrase(draw, 1, 4), "documents": candidates}
        lines.append(json.dumps({**record, "weight": weights[query % len(weights)]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_uneven_groups(path: Path) -> Path:
    """Nine judged queries, of which one has 60 documents and the others 5.

    However they are packed, one of two processes gets most of the rows, and the last turn is for one of them only.
    """
    deep = write_groups(path, queries=1, documents=60, name="deep").read_text(encoding="utf-8")
    path.write_text(deep + write_groups(path, queries=8, documents=5, seed=1).read_text(encoding="utf-8"))
    return path


def write_teacher(path: Path, data: Path) -> Path:
    """Scores of a teacher for every pair of the data."""
    pairs = [(group.query_id, document.doc_id) for group in read_groups(data) for document in group.documents]
    write_scores(path, [(*pair, float(number % 7)) for number, pair in enumerate(pairs)], teacher="t")
    return path


def write_candidates(path: Path, data: Path) -> Path:
    """A run of the documents of the data in their order."""
    orders = {group.query_id: [document.doc_id for document in group.documents] for group in read_groups(data)}
    run = {query_id: {doc_id: -place for place, doc_id in enumerate(order)} for query_id, order in orders.items()}
    write_run(path, run, "first")
    return path


def training_group(group: QueryGroup) -> TrainingGroup:
    """The query's documents have the targets 0, 1, 2..."""
    return TrainingGroup(group.query_id, group.query, group.documents, tuple(map(float, range(len(group.documents)))))


def training_groups(directory: Path, **size: Any) -> list[TrainingGroup]:
    return [training_group(group) for group in read_groups(write_groups(directory / "judged.jsonl", **size))]


def _phrase(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choices(TEXT.split(), k=draw.randint(least, most)))


def _wordpiece() -> PreTrainedTokenizerFast:
    """Words and letters, not trained: the library's trainers of WordPiece and Unigram break ties by chance."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [f"{before}{letter}" for before in ("", "##") for letter in LETTERS]
    pieces = dict.fromkeys([*special, *letters, *TEXT.split()])
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    vocabulary = tokenizer.get_vocab()  # other loaders of a checkpoint add the control tokens by this:
    tokenizer.post_processor = processors.BertProcessing(*((name, vocabulary[name]) for name in ("[SEP]", "[CLS]")))
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def byte_level(special: Sequence[str], **names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose first tokens are ``special``; ``names`` says what they are for (``eos_token``...)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    words = TEXT.split()  # and the letters that any other English word is made of
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words), LETTERS, *LETTERS], trainer)
    return _named(tokenizer, names)


def unigram(special: Sequence[str], **names: str) -> PreTrainedTokenizerFast:
    """A SentencePiece-like Unigram, the control tokens among its pieces as in XLM-R."""
    # Logarithms of probabilities: a word beats its letters.
    words, letters = [(f"▁{word}", -4.0) for word in TEXT.split()], [(letter, -8.0) for letter in f"▁{LETTERS}"]
    pieces = [*((name, 0.0) for name in special), *words, *letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index(names["unk_token"])))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _named(tokenizer, names)


def _named(tokenizer: Tokenizer, names: dict[str, str]) -> PreTrainedTokenizerFast:
    if "cls_token" in names:  # RoBERTa's template
        vocabulary = tokenizer.get_vocab()
        end, start = ((names[name], vocabulary[names[name]]) for name in ("sep_token", "cls_token"))
        tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
