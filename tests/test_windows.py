"""A ModernBERT of Ettin's smallest width from its checkpoint to a running server, with pairs longer than its window."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from client import RankingClient
from engines.records import runner
from model_repository.student.runtime.openvino_engine import OpenVinoEngine
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.tokenizer.pair_encoding import FlatPairs, FloatArray, PairEncoder
from tests.support.checkpoints import TEXT, tiny_modernbert
from tests.support.servers import build, running
from tests.support.stages import run
from trainer import distill, init, rank_sft, score
from trainer.checkpoints.load import PackedScorer, load_scorer
from trainer.data.pairs import encode_groups
from trainer.data.rankings import read_scores
from trainer.data.records import QueryGroup, read_groups

# Weller et al. 2025, arXiv 2507.11412: 17 million parameters, of which 13 are embeddings, which are fewer here. So are
# the layers, of 7, since each takes seconds to export: the first and the last see all, those between see a window.
ETTIN_17M = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "local_attention": 128,
    "classifier_pooling": "mean",  # as the hub's configuration has it; a new head may choose
}
LONGEST = 500
LIMITS = ["--max_query_tokens", 16, "--max_pair_tokens", LONGEST, "--row_length", 512, "--slots_per_row", 16]
FEW = ["--max_steps", 2, "--per_device_train_batch_size", 1, "--save_strategy", "no", "--disable_tqdm", "true"]


def ettin(directory: Path) -> Path:
    """A language model as the hub has them, with drawn weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_modernbert(directory.with_name("tokenizer")))
    torch.manual_seed(1)  # by which no score is far from all others
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    drawn = {"vocab_size": len(tokenizer), "initializer_range": 0.1}
    config = AutoConfig.for_model("modernbert", **ETTIN_17M, **ids, **drawn)
    AutoModelForMaskedLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def long_documents(path: Path) -> Path:
    """Judged queries with documents of no word to more than a pair holds."""
    draw = random.Random(0)
    lines = []
    for query in range(2):
        texts = [" ".join(draw.choices(TEXT.split(), k=count)) for count in (0, 30, 90 + query, 200, 600)]
        documents = [
            {"doc_id": f"d{place}", "title": "", "summary": text, "label": place} for place, text in enumerate(texts)
        ]
        record = {"query_id": f"q{query}", "query": " ".join(draw.choices(TEXT.split(), k=3)), "documents": documents}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))
    return path


def of_transformers(checkpoint: Path, pairs: FlatPairs) -> FloatArray:
    """Scores of pairs one by one, by the class that loads the checkpoint elsewhere."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        return np.array([model(torch.from_numpy(pair.token_ids)[None].long()).logits.item() for pair in pairs])


def pairs_of(checkpoint: Path, groups: list[QueryGroup]) -> FlatPairs:
    return encode_groups(PairEncoder.load(checkpoint), groups)


def test_scores_are_those_of_transformers_at_every_step(tmp_path: Path) -> None:
    data = long_documents(tmp_path / "judged.jsonl")
    groups = read_groups(data)
    base, teacher, student = (tmp_path / name for name in ("base", "teacher", "student"))
    run(init, "--pretrained", ettin(tmp_path / "hub"), "--output_dir", base, *LIMITS)
    run(rank_sft, "--model", base, "--data", data, "--output_dir", teacher, *FEW)
    scores = tmp_path / "scores.parquet"
    run(score, "--model", teacher, "--data", data, "--output", scores)
    run(distill, "--model", base, "--data", data, "--scores", scores, "--output_dir", student, *FEW)

    pairs = pairs_of(base, groups)
    assert min(pairs.lengths) < 10 and max(pairs.lengths) == LONGEST
    expected = {checkpoint: of_transformers(checkpoint, pairs) for checkpoint in (base, teacher, student)}
    assert min(np.ptp(values) for values in expected.values()) > 0.01
    for checkpoint, values in expected.items():
        packed = PackedScorer(load_scorer(checkpoint)).score(PairEncoder.load(checkpoint).pack(pairs))
        np.testing.assert_allclose(packed, values, atol=1e-5, rtol=0)
    written = read_scores(str(scores))
    by_pair = [written[group.query_id][document.doc_id] for group in groups for document in group.documents]
    np.testing.assert_allclose(by_pair, expected[teacher], atol=1e-4, rtol=0)

    repository = build(student, tmp_path / "model_repository", "fp32", "--data", str(data), "--rows_per_call", "4")
    with running(repository, tmp_path / "log") as server, RankingClient(server.url) as client:
        for group, values in zip(groups, np.split(expected[student], len(groups)), strict=True):
            documents = [{"title": document.title, "summary": document.summary} for document in group.documents]
            served = sorted(client.rank(group.query, documents), key=lambda found: found.index)
            np.testing.assert_allclose([found.score for found in served], values, atol=1e-4, rtol=0)
    lengths = np.arange(2, LONGEST + 1, 83)
    tokens = np.random.default_rng(0).integers(5, 80, lengths.sum()).astype(np.int32)
    drawn = FlatPairs(tokens, lengths, lengths // 2, np.zeros(len(lengths), np.bool_))
    engine = runner(PairScorer.load(repository / "student/1", OpenVinoEngine))
    np.testing.assert_allclose(engine(drawn), of_transformers(student, drawn), atol=1e-4, rtol=0)
