"""A head that is brought to the scale of the teacher's scores before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.checkpoints.load import PackedScorer
from trainer.data.records import DataError
from trainer.packed.heads import last_layer_of_head
from trainer.scoring.checkpoint import ROWS_PER_PASS, GroupScorer
from trainer.training.batches import TrainingGroup

QUERIES = 64  # whose documents are scored for it


def fit_head(model: Any, encoder: PairEncoder, groups: Iterator[TrainingGroup], quiet: bool = False) -> float:
    """Multiply the last layer of a scorer's head by the slope of the targets' margins on its own, and return that.

    The slope is that of least squares over the first ``QUERIES`` groups, of scores less their mean in a query. A bias
    makes the means of all scores and targets equal. Processes share out the scoring, so all must call this; a progress
    bar shows it unless ``quiet``. Raises DataError where the scores do not rise with the targets.
    """
    first = {group.query_id: group for group in islice(groups, QUERIES)}
    was_training = model.training
    model.eval()
    scorer = GroupScorer("fitting the head", PackedScorer(model), encoder, ROWS_PER_PASS)
    scores = scorer.score_all([*first.values()], quiet)
    model.train(was_training)
    student = [np.array([scores[query_id][one.doc_id] for one in group.documents]) for query_id, group in first.items()]
    teacher = [np.array(group.targets) for group in first.values()]
    ours, theirs = (np.concatenate([query - query.mean() for query in side]) for side in (student, teacher))
    slope = float(ours @ theirs / (ours @ ours)) if ours.any() else 0.0
    if slope <= 0:
        raise DataError(
            f"--fit_head: in {len(first)} queries the student's scores do not rise with the teacher's (slope "
            f"{slope:.2g}); it is for a student that ranks already"
        )
    layer = last_layer_of_head(model)
    with torch.no_grad():
        layer.weight.mul_(slope)
        if layer.bias is not None:
            layer.bias.mul_(slope).add_(float(np.concatenate(teacher).mean() - slope * np.concatenate(student).mean()))
    return slope
