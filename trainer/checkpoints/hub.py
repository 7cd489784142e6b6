"""A checkpoint on the Hugging Face hub, or on another server of its protocol (``HF_ENDPOINT``)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which it documents

from client.errors import DisRankerError
from trainer.checkpoints.load import first_line
from trainer.checkpoints.record import RECORD_FILE
from trainer.data.records import DataError

# What loads a checkpoint, and its card. The record and the curves name paths and the machine.
PUSHED = ("README.md", "*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
NOT_PUSHED = (RECORD_FILE, "*/*", ".*")


class HubError(DisRankerError):
    """A checkpoint was not pushed. It is whole on the disk."""


class HubArguments(Protocol):
    """The flags, which are those of transformers' TrainingArguments."""

    push_to_hub: bool
    hub_model_id: str | None
    hub_private_repo: bool | None
    hub_token: str | None
    hub_revision: str | None


@dataclass(frozen=True)
class Push:
    """Where a checkpoint goes. ``private`` is None for what the hub does by default."""

    repo_id: str
    private: bool | None
    token: str
    revision: str | None

    @classmethod
    def of(cls, arguments: HubArguments) -> Push | None:
        """None without ``--push_to_hub``. Raises DataError for a push that could not succeed, before any work."""
        if not arguments.push_to_hub:
            for name in ("hub_model_id", "hub_private_repo", "hub_token", "hub_revision"):
                if getattr(arguments, name) is not None:
                    raise DataError(f"--{name} is for --push_to_hub")
            return None
        repo_id, token = arguments.hub_model_id or "", arguments.hub_token or get_token()
        if repo_id.count("/") != 1:
            raise DataError(f"--push_to_hub needs --hub_model_id OWNER/NAME, not {repo_id!r}")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise DataError(f"--hub_model_id: {first_line(error)}") from error
        if not token:
            raise DataError("--push_to_hub needs a token: hf auth login, the variable HF_TOKEN, or --hub_token")
        return cls(repo_id, arguments.hub_private_repo, token, arguments.hub_revision)

    def checkpoint(self, directory: Path) -> str:
        """Push what loads the checkpoint, and its card; the address of the commit. Raises HubError."""
        api = HfApi(token=self.token)
        settings: dict[str, Any] = {"repo_id": self.repo_id, "revision": self.revision}
        try:
            api.create_repo(self.repo_id, private=self.private, exist_ok=True)
            if self.revision and not self.revision.startswith("refs/"):  # a new repository has main only
                api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
            commit = api.upload_folder(
                folder_path=directory, allow_patterns=[*PUSHED], ignore_patterns=[*NOT_PUSHED],
                commit_message=f"{directory.name}, by DisRanker", **settings,
            )  # fmt: skip
        except Exception as error:  # of the hub's client, of HTTP, of the library that uploads weights
            raise HubError(
                f"{self.repo_id}: not pushed to {api.endpoint}: {first_line(error)}; {directory} is whole: "
                f"{self._command(directory)}"
            ) from error
        return f"{directory}: pushed to {commit.commit_url}"

    def _command(self, directory: Path) -> str:
        """The command that pushes in the same way again. The token is not for printing."""
        flags = ["--model", str(directory), "--push_to_hub", "true", "--hub_model_id", self.repo_id]
        if self.private is not None:  # or the command would make a public repository of a private one
            flags += ["--hub_private_repo", str(self.private).lower()]
        if self.revision:
            flags += ["--hub_revision", self.revision]
        return shlex.join(["python", "-m", "trainer.card", *flags])
