"""A new version of the student or the teacher in a model repository: engine, tokenizer and dimensions as one set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engines.parity import ParityReport
from engines.records import CpuEngine, Dimensions, EngineError
from engines.repository.configs import changed_configs
from engines.repository.models import SCORERS, STUDENT, ModelSet, copy_models, places, stale_code
from engines.repository.teacher import identified
from model_repository.tokenizer.pair_encoding import ENCODING_FILE, TOKENIZER_FILE

SKELETON = Path(__file__).parents[2] / "model_repository"
SERVER_MODEL = "student/model.py"  # Triton wants a Python model inside its version
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``: what a version is, and what it was measured to do.

    ``precision`` was asked for, ``runs_in`` is computed in; hashes are SHA-256. ``cpu`` is for OpenVINO,
    ``torch_compile`` says where the torch engine is compiled, empty for the others, and ``plans`` are TensorRT's
    files by compute capability.
    """

    engine: str
    precision: str
    runs_in: str
    row_length: int
    slots_per_row: int
    max_rows: int
    rows_per_call: int
    encoding_hash: str
    checkpoint_hash: str
    versions: dict[str, str]
    parity: ParityReport
    created: str
    cpu: CpuEngine | None = None
    torch_compile: str = ""
    plans: dict[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> Dimensions:
        return Dimensions(self.row_length, self.slots_per_row, self.max_rows)

    @property
    def identity(self) -> str:
        """What decides the scores of a version."""
        rest = ""
        if self.cpu and self.cpu.int8:
            rest = f", all else{''.join(f' and {name}' for name in self.cpu.int8.kept)} in {self.cpu.rest_in},"
        return (
            f"{self.engine} in {self.runs_in}{rest} of checkpoint {self.checkpoint_hash}, encoding {self.encoding_hash}"
        )


def install(
    repository: Path,
    checkpoint: Path,
    engine_files: Sequence[Path],
    manifest: Manifest,
    server_model: bool,
    models: ModelSet = STUDENT,
) -> Path:
    """The directory of the new version, ``student/<highest + 1>``; it appears last, and whole.

    ``models`` that the repository lacks appear with it: of a teacher, all of them or none. A repository that
    does not exist is made from the project's own. ``server_model`` adds the Python model that runs the engine.
    Raises EngineError for a directory that is no model repository.
    """
    try:
        with _open_repository(repository, models) as root, places(SKELETON, root, models) as where:
            version = _next_version(where[models.scorer])
            _add_version(root, where, version, checkpoint, engine_files, manifest, server_model, models)
    except OSError as error:
        raise EngineError(f"{repository}: cannot be written: {error}") from error
    return repository / models.scorer / str(version)


def check_repository(repository: Path, engine: str) -> None:
    """Raises EngineError unless the directory is a model repository, or free to become one, and serves
    ``engine``: Triton takes the newest version, and one of another kind would keep it from starting."""
    if engine == "tensorrt_rtx" and repository.resolve() == SKELETON.resolve():
        raise EngineError(
            f"{repository}: Triton opens plans of tensorrt only; give those of tensorrt_rtx another --model_repository"
        )
    free = not repository.exists() or (repository.is_dir() and not any(repository.iterdir()))
    origin = SKELETON if free else repository
    scorers = [name for name in SCORERS if (origin / name / "config.pbtxt").is_file()]
    if not scorers:
        expected = " or ".join(f"{name}/config.pbtxt" for name in SCORERS)
        raise EngineError(f"{origin}: not a model repository of ours (it has no {expected})")
    for name in () if free else scorers:
        _check_kind(repository, name, engine)


def _check_kind(repository: Path, scorer: str, engine: str) -> None:
    version = _next_version(repository / scorer) - 1
    if not version:
        return
    installed = json.loads((repository / scorer / str(version) / MANIFEST_FILE).read_text(encoding="utf-8"))
    if installed["engine"] != engine:
        raise EngineError(
            f"{repository}: {scorer}/{version} is for {installed['engine']}, and Triton serves the newest version "
            f"whatever it is for; give {engine} a --model_repository of its own"
        )


@contextmanager
def _open_repository(repository: Path, models: ModelSet) -> Iterator[Path]:
    """The repository itself, or a copy of the skeleton that takes its name when the block succeeds."""
    if repository.exists() and any(repository.iterdir()):
        yield repository
        return
    partial = repository.absolute().with_name(f".{repository.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        copy_models(SKELETON, partial, models)
        yield partial
        partial.rename(repository)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _add_version(
    root: Path,
    where: Mapping[str, Path],
    version: int,
    checkpoint: Path,
    engine_files: Sequence[Path],
    manifest: Manifest,
    server_model: bool,
    models: ModelSet,
) -> None:
    scorer = where[models.scorer]
    partial = scorer / f".{version}.partial"
    tokenizer = {
        where[models.tokenizer] / name: (checkpoint / name).read_bytes() for name in (TOKENIZER_FILE, ENCODING_FILE)
    }
    configs = changed_configs(where.values(), manifest.dimensions, manifest.plans)
    if models.are_copies:
        configs |= identified(scorer, configs, version, manifest.identity)
    moves = [(path, root / name) for name, path in where.items() if path.parent != root]
    try:
        _fill(partial, engine_files, manifest, server_model)
        with replaced({**stale_code(SKELETON, where, models), **tokenizer, **configs}):
            _rename([(partial, scorer / str(version)), *moves])
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(moves: Sequence[tuple[Path, Path]]) -> None:
    """All of them, or none."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise


def _next_version(scorer: Path) -> int:
    return max((int(path.name) for path in scorer.iterdir() if path.name.isdigit()), default=0) + 1


def _fill(partial: Path, engine_files: Sequence[Path], manifest: Manifest, server_model: bool) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
    partial.mkdir()
    for path in engine_files:
        shutil.copyfile(path, partial / path.name)
    if server_model:
        shutil.copyfile(SKELETON / SERVER_MODEL, partial / "model.py")
    (partial / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


@contextmanager
def replaced(contents: dict[Path, bytes]) -> Iterator[None]:
    """Files with new contents; if the block or a write fails, with their old ones."""
    done: dict[Path, bytes | None] = {}
    try:
        for path, content in contents.items():
            before = path.read_bytes() if path.exists() else None
            _write_whole(path, content)
            done[path] = before
        yield
    except BaseException:
        for path, old in done.items():
            if old is None:
                path.unlink()
            else:
                _write_whole(path, old)
        raise


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
