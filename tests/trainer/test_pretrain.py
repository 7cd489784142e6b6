"""Which documents continued pre-training learns to write, and how much each weighs."""

from __future__ import annotations

import pytest

from trainer.data.records import JudgedDocument, QueryGroup
from trainer.pretrain import PretrainArguments, clicked


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        ({}, {"once": 1.0, "often": 10.0}),  # log2(1 + 1,023)
        ({"click_weight": "linear"}, {"once": 1.0, "often": 1023.0}),
        ({"click_weight": "none"}, {"once": 1.0, "often": 1.0}),
        ({"min_label": 2.0}, {"never": 1.0}),
    ],
)
def test_weights_of_clicked_documents(flags: dict[str, object], weights: dict[str, float]) -> None:
    documents = (
        JudgedDocument("once", "", "river", 0.0, 1),
        JudgedDocument("never", "", "river", 2.0, 0),
        JudgedDocument("often", "river", "", None, 1023),
        JudgedDocument("empty", " ", "\n", 3.0, 10**6),
    )
    arguments = PretrainArguments(model="m", **flags)  # type: ignore[arg-type]
    chosen = clicked(QueryGroup("q", "water", documents), arguments)
    assert chosen is not None
    assert dict(zip((each.doc_id for each in chosen.documents), chosen.targets, strict=True)) == weights
