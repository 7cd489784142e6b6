"""Records as the tensors of a training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_repository.tokenizer.pair_encoding import PairEncoder
from tests.support.checkpoints import training_groups
from trainer.data.pairs import encode_groups
from trainer.data.records import JudgedDocument, QueryGroup
from trainer.packed.forward import IGNORED
from trainer.training.batches import LanguageCollator, RankingCollator, TrainingGroup, draw_documents


def test_language_labels_are_the_documents_side_with_the_end(tmp_path: Path, llama: Path) -> None:
    encoder = PairEncoder.load(llama)
    (group,) = training_groups(tmp_path, queries=1)
    batch = LanguageCollator(encoder)([group])
    labels, inputs = batch["labels"], batch["packed"]["input_ids"]
    bearing = labels != IGNORED
    assert torch.equal(labels[bearing], inputs[bearing])
    most = encoder.config.max_pair_tokens
    learnt = [
        pair.token_ids[pair.document_start : -1 if pair.truncated and len(pair.token_ids) == most else None].tolist()
        for pair in encode_groups(encoder, [group])
    ]
    assert sorted(labels[bearing].tolist()) == sorted(token for tokens in learnt for token in tokens)
    assert batch["weights"].sum().item() == pytest.approx(np.dot([len(tokens) for tokens in learnt], group.targets))


def test_the_end_of_a_cut_document_and_of_an_empty_one_is_not_learnt(llama: Path) -> None:
    encoder = PairEncoder.load(llama)
    texts = {"whole": "river", "cut": "river " * 500, "empty": ""}
    documents = tuple(JudgedDocument(name, "", text, None, 1) for name, text in texts.items())
    batch = LanguageCollator(encoder)([TrainingGroup("q", "water", documents, (1.0, 1.0, 1.0))])
    whole, cut, empty = encode_groups(encoder, [QueryGroup("q", "water", documents)])
    assert len(cut.token_ids) == encoder.config.max_pair_tokens
    assert len(empty.token_ids) == empty.document_start + 1
    learnt = [*whole.token_ids[whole.document_start :], *cut.token_ids[cut.document_start : -1]]
    assert sorted(batch["labels"][batch["labels"] != IGNORED].tolist()) == sorted(learnt)
    assert batch["weights"].sum() == len(learnt)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(2, 8), st.integers(0, 50))
def test_a_draw_keeps_the_best_and_a_pair(targets: list[int], count: int, epoch: int) -> None:
    documents = tuple(JudgedDocument(str(place), "", "", None, 0) for place in range(len(targets)))
    group = TrainingGroup("q", "water", documents, tuple(map(float, targets)), tuple(map(float, range(len(targets)))))
    drawn = draw_documents(group, count, 0, epoch, 7)
    assert drawn == draw_documents(group, count, 0, epoch, 7)
    places = [int(document.doc_id) for document in drawn.documents]
    assert len(set(places)) == len(places) == min(count, len(targets))
    assert list(drawn.targets) == [targets[place] for place in places]
    assert list(drawn.labels) == places
    assert max(drawn.targets) == max(targets)
    assert (len(set(drawn.targets)) > 1) == (len(set(targets)) > 1)


def test_ranking_batches_keep_targets_beside_their_pairs(tmp_path: Path, bert: Path) -> None:
    encoder, groups = PairEncoder.load(bert), training_groups(tmp_path, queries=2)
    batch = RankingCollator(encoder)(groups)
    assert batch["targets"].tolist() == [*groups[0].targets, *groups[1].targets]
    assert batch["groups"].tolist() == [0] * len(groups[0].targets) + [1] * len(groups[1].targets)
    pair = next(iter(encode_groups(encoder, groups[1:])))
    row, place = divmod(int(batch["slots"][len(groups[0].targets)]), encoder.config.slots_per_row)
    there = batch["packed"]["segment_ids"][row] == place + 1
    assert batch["packed"]["input_ids"][row][there].tolist() == pair.token_ids.tolist()


@pytest.mark.parametrize("title", ["", "中" * 10, "中" * 400_000])
def test_a_text_above_a_servers_limit_is_cut_off_line(bert: Path, title: str) -> None:
    """It is as if the text ended far behind the tokens that are read."""
    encoder = PairEncoder.load(bert)
    long = JudgedDocument("d", title, "river 🚀 \ud83d" * 200_000, None, 0)
    short = JudgedDocument("d", title[:5000], "river 🚀 \ud83d" * 5000, None, 0)
    pairs = [encode_groups(encoder, [QueryGroup("q", "garden" * factor, (each,))]) for each, factor in
             ((long, 400_000), (short, 5000))]  # fmt: skip
    assert np.array_equal(pairs[0].token_ids, pairs[1].token_ids)
    assert pairs[0].truncated.all()
