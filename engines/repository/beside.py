"""Versions of a scorer that are served at the same time, each by an ensemble: ``ranker_2`` beside ``ranker``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.repository.changes import Changes
from engines.repository.configs import config_files, read_config, written
from engines.repository.models import ModelSet

NEWEST = -1  # of what is served, to Triton


def asked_version(repository: Path, models: ModelSet, version: int) -> dict[Path, bytes]:
    """New contents of the ensembles' configs that ask another version of the scorer than ``version``."""
    changed = {}
    for name in {models.ensemble, f"{models.ensemble}_tokens"} & {*models.names.values()}:
        for path in config_files(repository / name):  # none where it was deleted: it need not be served
            before = read_config(path)
            after = _asking(before, models.scorer, version)
            if after != before:
                changed[path] = written(after)
    return changed


def serve_beside(changes: Changes, repository: Path, models: ModelSet, versions: Sequence[int]) -> list[str]:
    """Give each of the versions an ensemble beside the usual one, and remove those of other versions; the names."""
    root = repository.absolute()
    new, old = (changes.staged(root.with_name(f".{root.name}.beside.{what}")) for what in ("new", "old"))
    there = [path.name for path in root.glob(f"{models.ensemble}_*") if path.name.rpartition("_")[2].isdecimal()]
    wanted = {f"{models.ensemble}_{version}": version for version in versions}
    for name, version in wanted.items():
        (new / name / "1").mkdir(parents=True)  # Triton wants a version of an ensemble too
        (new / name / "configs").mkdir()
        for path in config_files(root / models.ensemble):
            config = _asking(read_config(path), models.scorer, version)
            config.name = name
            (new / name / path.relative_to(root / models.ensemble)).write_bytes(written(config))
    for name in there:
        changes.move(root / name, old / name)
    for name in wanted:
        changes.move(new / name, root / name)
    return sorted(wanted)


def _asking(config: ModelConfig, scorer: str, version: int) -> ModelConfig:
    asking = ModelConfig()
    asking.CopyFrom(config)
    for step in asking.ensemble_scheduling.step:
        if step.model_name == scorer:
            step.model_version = version
    return asking
