"""Where the engines of a repository are, and whether a version of them may be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from engines.records import EngineError
from engines.repository.manifest import read_manifest
from engines.repository.models import ModelSet
from model_repository.student.digests import damage
from model_repository.tokenizer.pair_encoding import encoding_hash


class Place(NamedTuple):
    """The models of a repository that hold the engines, or that ask them."""

    repository: Path
    models: ModelSet

    @classmethod
    def of(cls, repository: Path, models: ModelSet) -> Place:
        """Raises EngineError for a directory without the models."""
        place = cls(repository, models)
        if not (place.scorer / "config.pbtxt").is_file():
            raise EngineError(f"{repository}: not a model repository of ours with a {models.scorer} (no config.pbtxt)")
        return place

    @property
    def scorer(self) -> Path:
        return self.repository / self.models.scorer

    @property
    def tokenizer(self) -> Path:
        return self.repository / self.models.tokenizer

    def manifest(self, version: int) -> dict[str, Any]:
        """Raises EngineError for a version that is not there."""
        return read_manifest(self.scorer / str(version))

    def check(self, version: int) -> None:
        """Raises EngineError for a version of another encoding than the repository's, or with damaged files."""
        manifest = self.manifest(version)
        if manifest["encoding_hash"] != encoding_hash(self.tokenizer):
            raise EngineError(
                f"{self.scorer}/{version} was built for another tokenizer or other encoding settings than those in "
                f"{self.tokenizer}: build it again from its checkpoint"
            )
        if wrong := damage(self.scorer / str(version), manifest.get("files", {})):
            raise EngineError(wrong)
