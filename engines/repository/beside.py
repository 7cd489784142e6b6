"""Versions of a scorer that are served at the same time, each by an ensemble: ``ranker_2`` beside ``ranker``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.repository.configs import read_config, written
from engines.repository.models import ModelSet

NEWEST = -1  # of what is served, to Triton


def asked_version(repository: Path, models: ModelSet, version: int) -> dict[Path, bytes]:
    """New contents of the ensembles' configs that ask another version of the scorer than ``version``."""
    changed = {}
    for name in {models.ensemble, f"{models.ensemble}_tokens"} & {*models.names.values()}:
        path = repository / name / "config.pbtxt"
        if not path.is_file():
            continue  # deleted: it need not be served
        before = read_config(path)
        after = _asking(before, models.scorer, version)
        if after != before:
            changed[path] = written(after)
    return changed


@contextmanager
def ensembles(repository: Path, models: ModelSet, versions: Sequence[int]) -> Iterator[list[str]]:
    """Names of the ensembles beside the usual one, for these versions: within the block they are there, and those of
    other versions are not. If it fails, all is as it was."""
    root = repository.absolute()
    new, old = (root.with_name(f".{root.name}.beside.{what}") for what in ("new", "old"))
    wanted = {f"{models.ensemble}_{version}": version for version in versions}
    there = [path.name for path in root.glob(f"{models.ensemble}_*") if path.name.rpartition("_")[2].isdecimal()]
    moves = [(root / name, old / name) for name in there]
    moves += [(new / name, root / name) for name in wanted]
    done: list[tuple[Path, Path]] = []
    try:
        for place in (new, old):
            shutil.rmtree(place, ignore_errors=True)  # of a command that was killed
            place.mkdir()
        for name, version in wanted.items():
            (new / name / "1").mkdir(parents=True)  # Triton wants a version of an ensemble too
            config = _asking(read_config(root / models.ensemble / "config.pbtxt"), models.scorer, version)
            config.name = name
            (new / name / "config.pbtxt").write_bytes(written(config))
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
        yield sorted(wanted)
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _asking(config: ModelConfig, scorer: str, version: int) -> ModelConfig:
    asking = ModelConfig()
    asking.CopyFrom(config)
    for step in asking.ensemble_scheduling.step:
        if step.model_name == scorer:
            step.model_version = version
    return asking
