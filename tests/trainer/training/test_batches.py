"""Records as the tensors of a training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import training_groups
from trainer.data.pairs import encode_groups
from trainer.packed.forward import IGNORED
from trainer.training.batches import LanguageCollator, RankingCollator


def test_language_labels_are_the_documents_side_with_the_end(tmp_path: Path, llama: Path) -> None:
    encoder = PairEncoder.load(llama)
    (group,) = training_groups(tmp_path, queries=1)
    batch = LanguageCollator(encoder)([group])
    labels, inputs = batch["labels"], batch["packed"]["input_ids"]
    bearing = labels != IGNORED
    assert torch.equal(labels[bearing], inputs[bearing])
    pairs = encode_groups(encoder, [group])
    expected = [token for pair in pairs for token in pair.token_ids[pair.document_start :]]
    assert sorted(labels[bearing].tolist()) == sorted(expected)
    tokens = [len(pair.token_ids) - pair.document_start for pair in pairs]
    assert batch["weights"].sum().item() == pytest.approx(np.dot(tokens, group.targets))


def test_ranking_batches_keep_targets_beside_their_pairs(tmp_path: Path, bert: Path) -> None:
    encoder, groups = PairEncoder.load(bert), training_groups(tmp_path, queries=2)
    batch = RankingCollator(encoder)(groups)
    assert batch["targets"].tolist() == [*groups[0].targets, *groups[1].targets]
    assert batch["groups"].tolist() == [0] * len(groups[0].targets) + [1] * len(groups[1].targets)
    pair = next(iter(encode_groups(encoder, groups[1:])))
    row, place = divmod(int(batch["slots"][len(groups[0].targets)]), encoder.config.slots_per_row)
    there = batch["packed"]["segment_ids"][row] == place + 1
    assert batch["packed"]["input_ids"][row][there].tolist() == pair.token_ids.tolist()
