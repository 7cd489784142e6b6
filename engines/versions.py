"""The installed versions of a repository's student, or teacher: list, compare, and choose the one that Triton serves.

python -m engines.versions list
python -m engines.versions compare 1 2 --data dev.jsonl
python -m engines.versions use 1            # or latest
python -m engines.versions use 1 --beside 2 # the ensemble ranker_2 answers with version 2
python -m engines.versions use 2 --teacher
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tritonclient.grpc.model_config_pb2 import ModelConfig

from client.command import command
from engines.parity import ParityReport, Yardstick
from engines.records import EngineError, Runner, runner
from engines.repository.configs import config_files, read_config, serving_configs, written
from engines.repository.install import Changes, together
from engines.repository.manifest import MANIFEST_FILE, read_manifest
from engines.repository.models import STUDENT, TEACHER, ModelSet
from engines.table import ENGINES, names
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.student.served import served_version, served_versions, versions_of
from model_repository.tokenizer.pair_encoding import PairEncoder, encoding_hash
from trainer.data.records import read_groups
from trainer.measures.metrics import MEASURE

LATEST = "latest"
NEWEST = -1  # of what is served, to Triton


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, or 2 for bad input."""
    arguments = _parser().parse_args(argv)
    place = Place.of(Path(arguments.model_repository), TEACHER if arguments.teacher else STUDENT)
    if arguments.command == "list":
        print("\n".join(describe(place)))
    elif arguments.command == "use":
        print(use(place, None if arguments.version == LATEST else int(arguments.version), arguments.beside))
    else:
        print("\n".join(compare_versions(place, arguments.versions, *arguments.data)))


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


def describe(place: Place) -> list[str]:
    """A line for each version, the served one marked."""
    served = {version: f", served by {place.models.ensemble}_{version}" for version in served_versions(place.scorer)}
    served[served_version(place.scorer)] = ", served"
    lines = []
    for version in versions_of(place.scorer):
        if not (place.scorer / str(version) / MANIFEST_FILE).is_file():
            lines.append(f"{version}: not built by build_engines.py")
            continue
        manifest = _manifest(place, version)
        runs_in = "" if manifest["runs_in"] == manifest["precision"] else f" (runs in {manifest['runs_in']})"
        created = f"{manifest['created']}{served.get(version, '')}"
        lines.append(f"{version}: {manifest['engine']}, {manifest['precision']}{runs_in}, {created}")
    return lines or [f"{place.scorer}: no versions yet; build_engines.py makes them"]


def use(place: Place, version: int | None, beside: Sequence[int] = ()) -> str:
    """Have Triton serve ``version``, or the newest for None, and each of ``beside`` by an ensemble of its own, whose
    name ends with the version; all configs change, or none.

    A server that polls its repository follows by itself, any other one when it is started again. Raises
    EngineError for a version that is not there, or that the repository's tokenizer does not fit.
    """
    scorer = place.scorer
    versions = [] if version is None else [version, *beside]
    if beside and (version is None or len({*versions}) < len(versions)):
        raise EngineError(f"--beside {' '.join(map(str, beside))}: name other versions, beside the number of one")
    for chosen in versions:
        _check_fits(place, chosen)
    asked = version if version is not None and beside else NEWEST
    configs = serving_configs(scorer, versions) | _asked_version(place, asked)
    try:
        with together() as changes:
            for path, content in configs.items():
                changes.write(path, content)
            ensembles = _serve_beside(changes, place, beside)
    except OSError as error:
        raise EngineError(f"{place.repository}: cannot be written: {error}") from error
    served = f"{scorer}: Triton serves version {served_version(scorer)}{'' if version else ', the newest'}"
    return "".join([served, *(f", and version {name.rpartition('_')[2]} as {name}" for name in ensembles)])


def _asked_version(place: Place, version: int) -> dict[Path, bytes]:
    """New contents of the ensembles' configs that ask another version of the scorer than ``version``."""
    changed = {}
    ensemble = place.models.ensemble
    for name in {ensemble, f"{ensemble}_tokens"} & {*place.models.names.values()}:
        for path in config_files(place.repository / name):  # none where it was deleted: it need not be served
            before = read_config(path)
            after = _asking(before, place, version)
            if after != before:
                changed[path] = written(after)
    return changed


def _serve_beside(changes: Changes, place: Place, versions: Sequence[int]) -> list[str]:
    """Give each of the versions an ensemble beside the usual one, and remove those of other versions; the names."""
    root, ensemble = place.repository.absolute(), place.models.ensemble
    new, old = (changes.staged(root.with_name(f".{root.name}.beside.{what}")) for what in ("new", "old"))
    there = [path.name for path in root.glob(f"{ensemble}_*") if path.name.rpartition("_")[2].isdecimal()]
    wanted = {f"{ensemble}_{version}": version for version in versions}
    for name, version in wanted.items():
        (new / name / "1").mkdir(parents=True)  # Triton wants a version of an ensemble too
        (new / name / "configs").mkdir()
        for path in config_files(root / ensemble):
            config = _asking(read_config(path), place, version)
            config.name = name
            (new / name / path.relative_to(root / ensemble)).write_bytes(written(config))
    for name in there:
        changes.move(root / name, old / name)
    for name in wanted:
        changes.move(new / name, root / name)
    return sorted(wanted)


def _asking(config: ModelConfig, place: Place, version: int) -> ModelConfig:
    asking = ModelConfig()
    asking.CopyFrom(config)
    for step in asking.ensemble_scheduling.step:
        if step.model_name == place.models.scorer:
            step.model_version = version
    return asking


def _check_fits(place: Place, version: int) -> None:
    if _manifest(place, version)["encoding_hash"] != encoding_hash(place.tokenizer):
        raise EngineError(
            f"{place.scorer}/{version} was built for another tokenizer or other encoding settings than those in "
            f"{place.tokenizer}: build it again from its checkpoint"
        )


def compare_versions(place: Place, versions: Sequence[int], *data: str) -> list[str]:
    """Lines that compare each of the versions with the first on the pairs of data files, by the server's engine.

    Raises EngineError for a version that cannot run here, or that is not of the repository's own tokenizer.
    """
    encoder, groups = PairEncoder.load(place.tokenizer), read_groups(*data)
    runners = {version: _open(place, version) for version in versions}
    first = versions[0]
    yardstick = Yardstick.of(runners[first], encoder, groups)
    reports = {version: yardstick.report(run, f"version {version}") for version, run in runners.items()}
    speeds = _speeds(runners, yardstick)  # the reports were the warm-up: each engine has run every request
    lines = [f"{len(groups)} queries of {' '.join(data)}"]
    for version, report in reports.items():
        line = _line(place, version, yardstick.ndcg(), report)
        line += f", {speeds[version]:.4g} rows/s"
        if version != first:
            line += (
                f"; against {first}: scores within {report.largest_difference:.2g}, Kendall's tau "
                f"{report.mean_kendall_tau:.4f}, speed {speeds[version] / speeds[first]:.2f}x"
            )
        lines.append(line)
    return lines


def _line(place: Place, version: int, base: float | None, report: ParityReport) -> str:
    difference = report.ndcg_difference
    measured = "no labels" if base is None or difference is None else f"{MEASURE} {base + difference:.4f}"
    return f"{version}: {_manifest(place, version)['runs_in']}, {measured}"


def _speeds(runners: dict[int, Runner], yardstick: Yardstick) -> dict[int, float]:
    """Rows a second; the versions take turns at each request."""
    seconds = dict.fromkeys(runners, 0.0)
    for request in yardstick.requests:
        for version, run in runners.items():
            start = time.perf_counter()
            run(request.pairs)
            seconds[version] += time.perf_counter() - start
    rows = sum(len(request.pairs.token_ids) for request in yardstick.requests) / yardstick.layout.row_length
    return {version: rows / took for version, took in seconds.items()}


def _open(place: Place, version: int) -> Runner:
    manifest = _manifest(place, version)
    engine = ENGINES.get(manifest["engine"])
    if engine is None or not engine.compared:
        comparable = names([engine for engine in ENGINES.values() if engine.compared])
        raise EngineError(f"version {version} is for {manifest['engine']}; only {comparable} can be compared here")
    _check_fits(place, version)
    return runner(PairScorer.load(place.scorer / str(version), engine.serving_class()))


def _manifest(place: Place, version: int) -> dict[str, Any]:
    return read_manifest(place.scorer / str(version))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines.versions", description=(__doc__ or "").partition("\n")[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model_repository", default="model_repository")
    common.add_argument("--teacher", action="store_true", help="the teacher's versions instead of the student's")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[common], help="what is installed, and what is served")
    compare = commands.add_parser("compare", parents=[common], help="scores and speed of versions on a data file")
    compare.add_argument("versions", nargs="+", type=int, help="the first is what the others are compared with")
    compare.add_argument("--data", nargs="+", required=True, help="queries with documents (JSONL, Parquet)")
    chosen = commands.add_parser("use", parents=[common], help="the version that Triton serves")
    chosen.add_argument("version", type=_version, help=f"a number, or {LATEST}")
    chosen.add_argument(
        "--beside",
        nargs="+",
        type=int,
        default=[],
        metavar="VERSION",
        help="served too, to compare with: version 2 by the ensemble ranker_2; each takes an engine's memory",
    )
    return parser


def _version(text: str) -> str:
    if text != LATEST and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a version's number nor {LATEST!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
