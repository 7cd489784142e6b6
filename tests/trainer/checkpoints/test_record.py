"""Records of checkpoints: what is taken for one, and what it says of the stages before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoints.record import read_record, stages_of

OTHERS: list[Any] = [
    [1], {"arguments": 1}, {"arguments": {"data": [1]}}, {"adapter": [1]}, {"adapter": {"stages": 3}}, {"stages": 3},
    {"stages": [1]}, {"stages": [{"from": "acme/tiny"}]}, {"evaluations": 1}, {"held_out": [1]},
]  # fmt: skip


@pytest.mark.parametrize("record", OTHERS)
def test_a_file_of_others_by_the_name_of_a_record_is_none(record: Any, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert read_record(tmp_path) == {}
    assert len(stages_of({"arguments": {"model": str(tmp_path)}})) == 1


def test_stages_name_files_without_folders_and_datasets_by_their_ids() -> None:
    data = ["data/log.jsonl", "ir_datasets:msmarco-passage/trec-dl-2020/judged"]
    (stage,) = stages_of({"stage": "distill", "arguments": {"model": "/runs/bert", "data": data}})
    assert stage == {"stage": "distill", "from": "bert", "hub": False, "data": ["log.jsonl", data[1]]}
