"""The installed versions of a repository's student, or teacher: list, compare, and choose the one that Triton serves.

python -m engines.versions list
python -m engines.versions compare 1 2 --data dev.jsonl
python -m engines.versions use 1            # or latest
python -m engines.versions use 1 --server localhost:8001  # in a running server, without a failed request
python -m engines.versions use 1 --beside 2 # the ensemble ranker_2 answers with version 2
python -m engines.versions use 2 --teacher
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from client.command import command
from client.flags import add_server_flags, connection_of
from engines.parity import ParityReport, Yardstick
from engines.records import EngineError, Runner, runner
from engines.repository.configs import config_files, read_config, serving_configs, written
from engines.repository.control import RunningServer
from engines.repository.install import Changes, together
from engines.repository.manifest import MANIFEST_FILE
from engines.repository.models import STUDENT, TEACHER
from engines.repository.place import Place
from engines.table import ENGINES, names
from model_repository.student.runtime.pair_scorer import PairScorer
from model_repository.student.served import served_version, served_versions, versions_of
from model_repository.tokenizer.pair_encoding import PairEncoder
from trainer.data.records import read_groups
from trainer.measures.metrics import MEASURE

LATEST = "latest"
NEWEST = -1  # of what is served, to Triton


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, or 2 for bad input."""
    arguments = _parser().parse_args(argv)
    if "://" in arguments.model_repository:
        raise EngineError(f"{arguments.model_repository}: this command takes a folder, not an address")
    place = Place.of(Path(arguments.model_repository), TEACHER if arguments.teacher else STUDENT)
    if arguments.command == "list":
        print("\n".join(describe(place)))
    elif arguments.command == "use":
        version = None if arguments.version == LATEST else int(arguments.version)
        if arguments.server is None:
            print(use(place, version, arguments.beside))
            return
        arguments.url = [arguments.server]
        with RunningServer(connection_of(arguments), place) as server:
            print(use(place, version, arguments.beside, server))
    else:
        print("\n".join(compare_versions(place, arguments.versions, *arguments.data)))


def describe(place: Place) -> list[str]:
    """A line for each version, the served one marked."""
    served = {version: f", served by {place.models.ensemble}_{version}" for version in served_versions(place.scorer)}
    served[served_version(place.scorer)] = ", served"
    lines = []
    for version in versions_of(place.scorer):
        if not (place.scorer / str(version) / MANIFEST_FILE).is_file():
            lines.append(f"{version}: not built by build_engines.py")
            continue
        manifest = place.manifest(version)
        runs_in = "" if manifest["runs_in"] == manifest["precision"] else f" (runs in {manifest['runs_in']})"
        created = f"{manifest['created']}{served.get(version, '')}"
        lines.append(f"{version}: {manifest['engine']}, {manifest['precision']}{runs_in}, {created}")
    return lines or [f"{place.scorer}: no versions yet; build_engines.py makes them"]


def use(place: Place, version: int | None, beside: Sequence[int] = (), server: RunningServer | None = None) -> str:
    """Have Triton serve ``version``, or the newest for None, and each of ``beside`` by an ensemble of its own, whose
    name ends with the version; all configs change, or none.

    A running ``server`` loads it at once. One that polls its repository follows by itself, any other one when it is
    started again. Raises EngineError for a version that is not there, is damaged, or does not fit the repository's
    tokenizer, and for one that the server cannot load; the server then serves what it served before.
    """
    scorer = place.scorer
    versions = [] if version is None else [version, *beside]
    if beside and (version is None or len({*versions}) < len(versions)):
        raise EngineError(f"--beside {' '.join(map(str, beside))}: name other versions, beside the number of one")
    for chosen in versions or versions_of(scorer)[-1:]:
        place.check(chosen)
    asked = version if version is not None and beside else NEWEST
    configs = serving_configs(scorer, versions) | _asked_version(place, asked)
    if server:
        if beside or _asked_version(place, NEWEST) or _ensembles_beside(place):
            raise EngineError("--server is for a server of one version: start one with versions --beside another again")
        server.check_tokenizer()
    answers = ""
    try:
        with together() as changes:
            if server:
                changes.undo.callback(server.load_again)  # the last of what is undone
            for path, content in configs.items():
                changes.write(path, content)
            ensembles = _serve_beside(changes, place, beside)
            if server:
                answers = f", which answers at {server.address} after {server.load(served_version(scorer)):.1f} s"
    except OSError as error:
        raise EngineError(f"{place.repository}: cannot be written: {error}") from error
    served = f"{scorer}: Triton serves version {served_version(scorer)}{'' if version else ', the newest'}{answers}"
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
    there = _ensembles_beside(place)
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


def _ensembles_beside(place: Place) -> list[str]:
    found = place.repository.absolute().glob(f"{place.models.ensemble}_*")
    return [path.name for path in found if path.name.rpartition("_")[2].isdecimal()]


def _asking(config: ModelConfig, place: Place, version: int) -> ModelConfig:
    asking = ModelConfig()
    asking.CopyFrom(config)
    for step in asking.ensemble_scheduling.step:
        if step.model_name == place.models.scorer:
            step.model_version = version
    return asking


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
    return f"{version}: {place.manifest(version)['runs_in']}, {measured}"


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
    manifest = place.manifest(version)
    engine = ENGINES.get(manifest["engine"])
    if engine is None or not engine.compared:
        comparable = names([engine for engine in ENGINES.values() if engine.compared])
        raise EngineError(f"version {version} is for {manifest['engine']}; only {comparable} can be compared here")
    place.check(version)
    return runner(PairScorer.load(place.scorer / str(version), engine.serving_class()))


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
    chosen.add_argument(
        "--server", metavar="HOST:PORT", help="gRPC of a running server, which loads the version at once"
    )
    add_server_flags(chosen, target=False)
    chosen.set_defaults(timeout=600.0)
    return parser


def _version(text: str) -> str:
    if text != LATEST and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a version's number nor {LATEST!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
