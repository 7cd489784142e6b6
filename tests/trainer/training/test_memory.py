"""Too little memory is an error that names the flags which need less."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.support.checkpoints import tiny_bert, write_groups
from trainer import rank_sft


def test_what_does_not_fit_into_memory_names_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An allocation that fails for real: the masks of the 48 rows take three gigabytes together."""
    model = tiny_bert(tmp_path / "model", row_length=2**12, slots_per_row=4)
    data = write_groups(tmp_path / "judged.jsonl", queries=8, documents=24)
    flags = ["--model", model, "--data", data, "--output_dir", tmp_path / "out", "--max_steps", 1, "--use_cpu", "true"]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * 2**30, limits[1]))
    try:
        assert rank_sft.main([str(flag) for flag in flags]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: out of memory"))
    assert all(flag in error for flag in ("--token_budget", "--activation_checkpointing", "--documents_per_query"))
    assert not (tmp_path / "out").exists()
