"""Every recipe of docs/students.md trains a student, with its losses, scores and rates as they stand there."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.checkpoints import write_groups, write_teacher
from tests.support.stages import run
from tests.test_docs import commands
from trainer import distill
from trainer.data.records import read_groups

PAGE = ROOT / "docs/students.md"
RECIPES = {flags[-1]: flags for module, flags in commands(PAGE) if module == "trainer.distill" and "..." not in flags}
SIZES = re.findall(r"^\| [^|]+ \| `(--learning_rate .*)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
# What comes last counts.
QUICK = ["--max_steps", 2, "--logging_steps", 1, "--disable_tqdm", "true", "--bf16", "false"]


def flat(path: Path, data: Path) -> Path:
    """A pool with a pair in each line."""
    pairs = [(group, document) for group in read_groups(data) for document in group.documents]
    lines = [
        {"query_id": f"p{place}", "query": group.query, "documents": [asdict(document)]}
        for place, (group, document) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_page_has_recipes_and_sizes() -> None:
    assert set(RECIPES) == {f"runs/{name}" for name in ("hybrid", "margins", "points", "order")}
    assert len(SIZES) == 6


@pytest.mark.parametrize(
    ("recipe", "size"), [*((name, "") for name in RECIPES), *(("runs/points", size) for size in SIZES[1:])]
)
def test_a_recipe_trains_a_student(recipe: str, size: str, bert: Path, data: Path, tmp_path: Path) -> None:
    if recipe == "runs/points":
        data = flat(tmp_path / "pairs.jsonl", data)
    out, scores = tmp_path / "out", write_teacher(tmp_path / "scores.parquet", data)
    here = ["--model", bert, "--data", data, "--scores", scores, "--output_dir", out, *QUICK]
    if "--held_out" in RECIPES[recipe]:
        here += ["--held_out", write_groups(tmp_path / "dev.jsonl", seed=1, name="h")]
    run(distill, *RECIPES[recipe], *size.split(), *here)
    record = json.loads((out / "training.json").read_text())
    rate = (size or " ".join(RECIPES[recipe])).partition("--learning_rate ")[2].split()[0]
    assert record["training"]["learning_rate"] == float(rate)
    assert all(0 < point["loss"] < math.inf for point in record["loss_curve"])
