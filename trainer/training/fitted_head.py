"""A head that is brought to the scale of the teacher's scores before the first step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from trainer.checkpoints.load import Checkpoint, PackedScorer
from trainer.data.records import DataError
from trainer.packed.heads import last_layer_of_head
from trainer.scoring.checkpoint import ROWS_PER_PASS, GroupScorer
from trainer.training.in_parts import rows_within
from trainer.training.run import StageArguments
from trainer.training.streams import GroupList, GroupStream

QUERIES = 64  # whose documents are scored for it
LEAST = 1e-6  # of a margin, in logits: what is below is rounding


def fit_head(student: Checkpoint, groups: GroupList | GroupStream, training: StageArguments) -> float:
    """Multiply the last layer of a scorer's head by the slope of the targets' margins on its own, and return that.

    The slope is that of least squares over at most ``QUERIES`` of the groups, evenly spaced, of scores less their mean
    in a query. A bias is moved so that the means of all scores and targets are equal. Processes share out the scoring,
    so all must call this. Raises DataError where the margins do not rise with the targets'.
    """
    step, model = max(1, len(groups) // QUERIES), student.model
    chosen = {group.query_id: group for group in islice(iter(groups), 0, step * QUERIES, step)}
    rows = rows_within(training.token_budget, student.encoder.config.row_length) or ROWS_PER_PASS
    scorer = GroupScorer("fitting the head", PackedScorer(model), student.encoder, rows)
    was_training = model.training
    model.eval()
    scores = scorer.score_all([*chosen.values()], quiet=bool(training.disable_tqdm))
    model.train(was_training)
    ours = [np.array([scores[name][document.doc_id] for document in group.documents]) for name, group in chosen.items()]
    theirs = [np.array(group.targets) for group in chosen.values()]
    our_margins, their_margins = (np.concatenate([query - query.mean() for query in side]) for side in (ours, theirs))
    known = np.abs(our_margins).max() > LEAST
    slope = float(our_margins @ their_margins / (our_margins @ our_margins)) if known else 0.0
    if slope <= 0:
        raise DataError(
            f"--fit_head: in {len(chosen)} queries the student has no margins that rise with the teacher's (slope "
            f"{slope:.2g}); it is for a student that ranks already"
        )
    layer = last_layer_of_head(model)
    with torch.no_grad():
        layer.weight.mul_(slope)
        if layer.bias is not None:
            layer.bias.mul_(slope).add_(float(np.concatenate(theirs).mean() - slope * np.concatenate(ours).mean()))
    return slope
