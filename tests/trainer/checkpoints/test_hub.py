"""A checkpoint is pushed once and whole, to where the flags say, or lies whole on the disk."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.checkpoints import write_teacher
from tests.support.hubs import TOKEN, Hub, hub_running, point_to
from tests.support.scores import packed_scores
from tests.support.stages import FEW, fails, run
from trainer import card, distill, rank_sft
from trainer.checkpoints.load import load_scorer

# What the hub's client says of its own way to upload a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSH = ["--push_to_hub", "true", "--hub_model_id", "acme/student"]
BY_TOKEN = ["--hub_token", TOKEN]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    with hub_running(hub) as url:
        point_to(monkeypatch, url)
        yield hub


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, bert: Path, data: Path) -> list[object]:
    """Flags of a distillation."""
    scores = write_teacher(tmp_path_factory.mktemp("teacher") / "scores.parquet", data)
    return ["--model", bert, "--data", data, "--scores", scores, *FEW]


def test_a_student_is_pushed_once_with_all_that_loads_it(
    hub: Hub, taught: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    push = [*PUSH, *BY_TOKEN, "--hub_private_repo", "true"]
    run(distill, *taught, "--save_steps", 1, "--output_dir", out, *push)
    assert f"{out}: pushed to {hub.commits[0]}" in capsys.readouterr().out
    assert len(hub.commits) == 1 and hub.private == {"acme/student": True}
    names = {"README.md", "config.json", "model.safetensors", "pair_encoding.json", "tokenizer.json"}
    assert set(hub.files) == {f"acme/student/{name}" for name in (*names, "tokenizer_config.json")}
    pulled = hub.downloaded("acme/student", tmp_path / "pulled")
    assert np.array_equal(packed_scores(pulled), packed_scores(out))
    assert 'CrossEncoder("acme/student")' in (pulled / "README.md").read_text()
    everything = b"".join(hub.files.values()) + (out / "training.json").read_bytes()
    assert TOKEN.encode() not in everything
    assert str(tmp_path).encode() not in b"".join(hub.files.values())


def test_what_cannot_be_pushed_is_refused_before_training(
    hub: Hub,
    llama: Path,
    taught: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.checkpoints.hub.get_token", lambda: None)
    out = ["--output_dir", tmp_path / "out"]
    for message, flags in (
        ("needs a token", PUSH),
        ("needs --hub_model_id OWNER/NAME, not ''", [*PUSH[:2], *BY_TOKEN]),
        ("needs --hub_model_id OWNER/NAME, not 'student'", [*PUSH[:3], "student", *BY_TOKEN]),
        ("--hub_model_id: ", [*PUSH[:3], "acme/a..b", *BY_TOKEN]),
        ("--hub_model_id is for --push_to_hub", PUSH[2:]),
        ("--hub_private_repo is for --push_to_hub", ["--hub_private_repo", "true"]),
        ("--hub_revision is for --push_to_hub", ["--hub_revision", "dev"]),
        ("--hub_token is for --push_to_hub", BY_TOKEN),
        ("--hub_strategy is not supported", ["--hub_strategy", "end"]),
    ):
        assert message in fails(distill, capsys, *taught, *out, *flags)
    adapted = ["--model", llama, *taught[2:4], "--lora_rank", 2, "--lora_merge", "false", *FEW, *out]
    assert "leave --lora_merge true" in fails(rank_sft, capsys, *adapted, *PUSH, *BY_TOKEN)
    assert not list(tmp_path.iterdir())
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter is not pushed" in fails(card, capsys, "--model", tmp_path, *PUSH, *BY_TOKEN)
    assert not hub.branches


def test_a_push_that_failed_leaves_a_whole_checkpoint_and_the_command_for_another(
    hub: Hub, taught: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command goes to the same place: a private repository's branch, which is made."""
    out = tmp_path / "the student"
    push = [*PUSH, "--hub_private_repo", "true", "--hub_revision", "dev"]
    message = fails(distill, capsys, *taught, "--output_dir", out, *push, "--hub_token", "wrong")
    assert "acme/student: not pushed to http://127.0.0.1:" in message and "401" in message
    again = shlex.split(message.partition("is whole: ")[2])
    assert again == ["python", "-m", "trainer.card", "--model", str(out), *push]
    load_scorer(out)
    with monkeypatch.context() as nowhere:
        point_to(nowhere, "http://127.0.0.1:9")
        assert "acme/student: not pushed to http://127.0.0.1:9" in fails(card, capsys, *again[3:], *BY_TOKEN)
    assert not hub.commits
    for times in (1, 2):  # the branch is there by then
        run(card, *again[3:], *BY_TOKEN)
        assert hub.branches == {"acme/student@main": 0, "acme/student@dev": times}
    assert hub.private == {"acme/student": True}
