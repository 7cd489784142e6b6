"""Too little memory is an error that names the flags which need less."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.support.checkpoints import tiny_bert, write_groups


def test_what_does_not_fit_into_memory_names_the_flags(tmp_path: Path) -> None:
    """An allocation that fails for real: the masks of the 48 rows take three gigabytes together."""
    model = tiny_bert(tmp_path / "model", row_length=2**12, slots_per_row=4)
    data = write_groups(tmp_path / "judged.jsonl", queries=8, documents=24)
    flags = ["--model", model, "--data", data, "--output_dir", tmp_path / "out", "--max_steps", 1, "--use_cpu", "true"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))

    command = [sys.executable, "-m", "trainer.rank_sft", *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=600)
    assert result.returncode == 1, result.stderr[-2000:]
    error = next((line for line in result.stderr.splitlines() if line.startswith("error: out of memory")), "")
    assert all(flag in error for flag in ("--token_budget", "--activation_checkpointing", "--documents_per_query"))
    assert not (tmp_path / "out").exists()
