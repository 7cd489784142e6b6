"""Make a first checkpoint: a fresh tokenizer and model from a configuration, or a pretrained one.

    python -m trainer.init --config examples/student.json --data train.jsonl log.jsonl --output_dir runs/base
    python -m trainer.init --pretrained Qwen/Qwen3-0.6B --output_dir runs/base

What the pair encoding is made of (template, limits, row length) is decided here, once: it is data of
the checkpoint from then on. A published reranker becomes a teacher (docs/teachers.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from model_repository.tokenizer.pair_encoding import PairEncoder, PairEncodingConfig
from trainer.addresses import shown
from trainer.checkpoints.load import (
    NO_CODE,
    CheckpointError,
    Model,
    check_packing,
    load_for_training,
    reading,
    require_checkpoint,
)
from trainer.checkpoints.published import RerankerArguments, check_head, has_head, load_llm, refuse_flags
from trainer.checkpoints.rerankers import Reranker
from trainer.checkpoints.save import refuse_existing, save_checkpoint
from trainer.checkpoints.tokenizers import check_tokenizer, choose_pad, separators
from trainer.command import command, parse
from trainer.data.records import QueryGroup, read_groups
from trainer.packed.families import position_offset
from trainer.packed.heads import LATE, UnknownHeadError, give_late_interaction
from trainer.training.run import settings_of

ENCODER_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DECODER_TOKENS = ["<pad>", "<unk>", "<s>", "</s>"]


@dataclass
class InitArguments:
    """Where the checkpoint comes from, and the pair encoding that it will keep."""

    output_dir: str = field(metadata={"help": "Checkpoint to make."})
    config: str | None = field(default=None, metadata={"help": "JSON of a transformers configuration: a fresh model."})
    pretrained: str | None = field(default=None, metadata={"help": "Checkpoint or hub id to start from instead."})
    data: list[str] = field(default_factory=list, metadata={"help": "Texts for a fresh tokenizer (JSONL, Parquet)."})
    vocab_size: int = field(default=8000, metadata={"help": "Size of a fresh tokenizer's vocabulary, at most."})
    pooling: Literal["token", "late_interaction"] = field(
        default="token",
        metadata={
            "help": "Score from the state of one token; or from how alike the tokens of query and document are, which "
            "a bi-encoder's weights know already (encoders)."
        },
    )
    query_prefix: str = field(default="Query: ", metadata={"help": "Before the query (decoders)."})
    document_prefix: str = field(default=" Document: ", metadata={"help": "Before the document (decoders)."})
    max_query_tokens: int = field(default=64, metadata={"help": "A query is cut above this."})
    max_pair_tokens: int = field(default=256, metadata={"help": "A document is cut where its pair exceeds this."})
    row_length: int = field(default=256, metadata={"help": "Token slots of a packed row."})
    slots_per_row: int = field(default=16, metadata={"help": "Pairs in a packed row, at most."})
    max_documents: int = field(default=1000, metadata={"help": "Documents of a request, at most."})
    seed: int = field(default=0, metadata={"help": "Seed of fresh weights."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    make(*parse(argv, InitArguments, RerankerArguments))


def make(arguments: InitArguments, flags: RerankerArguments) -> None:
    """Write the checkpoint. Raises CheckpointError where there would be none, or a wrong one."""
    output_dir = Path(arguments.output_dir)
    refuse_existing(output_dir)
    set_seed(arguments.seed)
    if (arguments.config is None) == (arguments.pretrained is None):
        raise CheckpointError("give either --config (a fresh model) or --pretrained (a checkpoint or hub id)")
    if arguments.pretrained is not None:
        model, tokenizer, reranker = _pretrained(arguments.pretrained, flags)
    else:
        model, tokenizer, reranker = *_fresh(arguments, flags), None
    name = str(arguments.pretrained or arguments.config)
    causal = _is_causal(model.config)
    if arguments.pooling == LATE:
        _give_late_interaction(model, causal, name)
    check_tokenizer(tokenizer, model, "prompted" if reranker else "decoder" if causal else "encoder", name)
    padding = choose_pad(tokenizer, model) if causal else f"{tokenizer.pad_token} (the tokenizer's own)"
    settings = _encoding(arguments, tokenizer, model, reranker, name)
    encoder = PairEncoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), settings)
    check_packing(model, encoder, name)
    record = {"stage": "init", "arguments": settings_of(arguments) | settings_of(flags), "padding": padding}
    save_checkpoint(model, encoder, tokenizer, output_dir, record)
    print(
        f"{shown(arguments.output_dir)}: {model.config.model_type}, {model.num_parameters():,} parameters, "
        f"{len(tokenizer):,} tokens, padding {padding}"
    )
    if reranker:
        room = f"{encoder.template_tokens} of {settings.max_pair_tokens} tokens"
        print(f"scored by {reranker.score}; the prompt takes {room}")


def _pretrained(name: str, flags: RerankerArguments) -> tuple[Any, Any, Reranker | None]:
    require_checkpoint(name)
    with reading(name, "a model with a tokenizer"):
        config = AutoConfig.from_pretrained(name, **NO_CODE)
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_CODE)
    check_head(name, config, _is_causal(config), flags)
    if not _is_causal(config):
        refuse_flags(flags, f"{name} is an encoder, with a score of its own")
        return load_for_training(name), tokenizer, None
    model, reranker = load_llm(name, flags, config, tokenizer)
    return model, tokenizer, reranker


def _fresh(arguments: InitArguments, flags: RerankerArguments) -> tuple[Any, Any]:
    refuse_flags(flags, "a fresh model answers nothing")
    config = read_config(Path(str(arguments.config)))
    config.architectures = None  # of the checkpoint whose shape it is; this model's head is drawn
    if not arguments.data:
        raise CheckpointError("a fresh tokenizer needs texts: --data with JSONL or Parquet files")
    groups = read_groups(*arguments.data)
    causal = _is_causal(config)
    tokenizer = train_tokenizer(groups, arguments.vocab_size, causal)
    if getattr(config, "type_vocab_size", 0) < 2:  # other loaders of an encoder would hand it token types
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    config.vocab_size = len(tokenizer)
    adopt_tokens(config, tokenizer)
    kind: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_config(config, dtype=torch.float32)
    if getattr(config, "pair_pooling", None) == LATE:  # by the JSON file, which trainer.plan reads too
        _give_late_interaction(model, causal, str(arguments.config))
    return model, tokenizer


def _give_late_interaction(model: Model, causal: bool, name: str) -> None:
    if causal:
        raise CheckpointError(f"{name}: --pooling {LATE} is for encoders, and this is a causal LM")
    if has_head(model.config):
        raise CheckpointError(f"{name}: it has a score head already, which --pooling {LATE} would replace")
    try:
        give_late_interaction(model)
    except UnknownHeadError as error:
        raise CheckpointError(f"{name}: {error}") from error


def read_config(path: Path) -> PreTrainedConfig:
    """The shape in a JSON file, with one logit. Raises CheckpointError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), num_labels=1, **values)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model configuration with a known model_type: {error}") from error


def adopt_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a fresh model know the ids of its tokenizer's special tokens."""
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(config, token):
            setattr(config, token, getattr(tokenizer, token))


def _is_causal(config: PreTrainedConfig) -> bool:
    """BERT has a causal class too, so what also has a masked LM counts as an encoder."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def train_tokenizer(groups: Sequence[QueryGroup], vocab_size: int, causal: bool) -> PreTrainedTokenizerFast:
    """WordPiece in lower case for an encoder, byte-level BPE for a decoder."""
    if causal:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=DECODER_TOKENS, initial_alphabet=alphabet, show_progress=False
        )
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=ENCODER_TOKENS, show_progress=False)
        names = {f"{name[1:-1].lower()}_token": name for name in ENCODER_TOKENS}
    texts = (
        [group.query, *chain.from_iterable((one.title, one.summary) for one in group.documents)] for group in groups
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not causal:  # other loaders of the checkpoint add the control tokens by this
        vocabulary = tokenizer.get_vocab()
        control = [(name, vocabulary[name]) for name in ("[SEP]", "[CLS]")]
        tokenizer.post_processor = processors.BertProcessing(*control)
    inputs = ["input_ids", "attention_mask"] if causal else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def _encoding(
    arguments: InitArguments, tokenizer: Any, model: Model, reranker: Reranker | None, name: str
) -> PairEncodingConfig:
    limits = ("max_query_tokens", "max_pair_tokens", "row_length", "slots_per_row", "max_documents")
    settings: dict[str, Any] = {limit: getattr(arguments, limit) for limit in limits}
    if reranker is not None:
        prefixes = (arguments.query_prefix, arguments.document_prefix)
        if prefixes != (InitArguments.query_prefix, InitArguments.document_prefix):
            raise CheckpointError("--query_prefix and --document_prefix do nothing where there is a prompt")
        settings |= {"style": "decoder", "start_token": None, "end_token": None, "prompt": reranker.prompt}
    elif _is_causal(model.config):
        settings |= {
            "style": "decoder",
            "start_token": tokenizer.bos_token if tokenizer.bos_token != tokenizer.eos_token else None,
            "end_token": tokenizer.eos_token,
            "query_prefix": arguments.query_prefix,
            "document_prefix": arguments.document_prefix,
        }
    else:
        settings |= {
            "style": "encoder",
            "start_token": tokenizer.cls_token,
            "end_token": tokenizer.sep_token,
            "separators": separators(tokenizer, name),
        }
    return PairEncodingConfig(**settings, position_offset=position_offset(model))


if __name__ == "__main__":
    sys.exit(main())
