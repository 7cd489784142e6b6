"""The course of a run: its files are made, the systems start, and they are measured."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bench.environments import BenchError
from bench.report import Spread
from bench.serving import limits, traffic
from bench.serving.arguments import BUILDS, ServingArguments
from bench.serving.cells import Cell, Pair
from bench.serving.contenders import LONGEST_S, Contender, Progress, measure, rounds, start
from bench.serving.limits import Growth, Limits, Tail
from bench.serving.quality import Judge, Quality, text
from bench.serving.systems import OURS, PEERS, Place, System, build_ours, engine, ours, peer
from bench.training import material
from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncoder
from trainer.data.records import QueryGroup, read_groups

COMPARED = ((1, 1), (10, 1), (10, 16), (100, 1), (1000, 1))  # by all systems in all rounds; the rest by the best, once
IN_FLIGHT = 400  # documents of all callers, of those cells that only fill the queue
REPEATED = (0.5, 0.9)
CALIBRATION_PAIRS = 300


@dataclass(frozen=True)
class Findings:
    """All that a run measured. Limits, tails and growth are of our own systems, by name."""

    contenders: Sequence[Contender]
    qualities: Mapping[str, Quality]
    limits: dict[str, Limits] = field(default_factory=dict)
    tails: dict[str, Tail] = field(default_factory=dict)
    growth: dict[str, Growth] = field(default_factory=dict)


def prepared(arguments: ServingArguments, groups: Sequence[QueryGroup], work: Path) -> Place:
    """Make the files of the run: the student, the traffic, texts to calibrate with."""
    source = arguments.student or material.packaged_student()
    whole = (Path(source) / ENCODING_FILE).is_file()  # a scorer of ours; anything else gets a new head
    checkpoint = Path(source).absolute() if whole else Path(material.student(source, work / "student"))
    others = read_groups(*arguments.calibration) if arguments.calibration else groups
    for name, of in (("traffic", _pairs(groups)), ("calibration", _few(_pairs(others)))):
        traffic.save(work / f"{name}.json", of)
    for old in (
        "checkpoint-for-peers",
        "exported-onnx",
        "exported-openvino",
        *(f"repository-{build}" for build in BUILDS),
    ):
        shutil.rmtree(work / old, ignore_errors=True)  # perhaps of another checkpoint
    longest = PairEncoder.load(checkpoint).config.max_pair_tokens
    return Place(checkpoint, work / "traffic.json", work / "calibration.json", work, longest, arguments.threads)


def _pairs(groups: Sequence[QueryGroup]) -> list[Pair]:
    found = [(group.query, tuple(filter(None, map(text, group.documents)))) for group in groups]
    return [(query, documents) for query, documents in found if documents]


def _few(pairs: Sequence[Pair]) -> list[Pair]:
    each = max(1, CALIBRATION_PAIRS // len(pairs))
    return [(query, documents[:each]) for query, documents in pairs[:CALIBRATION_PAIRS]]


def started(
    arguments: ServingArguments, place: Place, judge: Judge, stack: ExitStack, bar: Any
) -> tuple[list[Contender], dict[str, Quality], dict[str, str]]:
    """Systems that run at their best settings, the quality of each, and the reasons why the others do not run."""
    gate = judge.save(place.work / "judged.jsonl")
    contenders, qualities, failed = [], dict[str, Quality](), dict[str, str]()
    asked = [name for name in arguments.systems if name != "ours"]
    own = [f"{OURS} {build}" for build in arguments.builds]
    for name in [*own, *(each for each in PEERS if each in asked)]:
        bar.set_description(f"starting {name}")
        try:
            contender = start(_system(name, arguments, place, gate), place.work, stack)
            if sum(len(group.documents) for group in judge.groups) / contender.speed < LONGEST_S:
                qualities[contender.name] = judge.quality(contender.process.scores(judge.pairs()))
        except BenchError as error:
            failed[name] = str(error)
            continue
        contenders.append(contender)
    if not any(contender.system.kind == OURS for contender in contenders):
        raise BenchError(next(iter(failed.values())))
    return contenders, qualities, failed


def _system(name: str, arguments: ServingArguments, place: Place, gate: Path) -> System:
    if not name.startswith(f"{OURS} "):
        return peer(name, place, Path(arguments.environments).absolute())
    build = name.partition(" ")[2]
    print(build_ours(place, build, gate, arguments.calibration), file=sys.stderr)
    return ours(place, build)


def measured(
    arguments: ServingArguments, place: Place, contenders: list[Contender], qualities: dict[str, Quality],
    progress: Progress,
) -> Findings:  # fmt: skip
    asked = list(product(arguments.documents, arguments.concurrency))
    shapes = [shape for shape in asked if shape in COMPARED] or asked[:1]
    compared = [Cell(*shape, arguments.seconds) for shape in shapes]
    rounds(contenders, compared, arguments.rounds, progress)
    own = [one for one in contenders if one.system.kind == OURS]
    findings = Findings(contenders, qualities)
    for cell in _wide(arguments, asked, compared):
        for contender in [*own, *_best_peers(findings, compared)]:
            measure(contender, cell, seed=0)
            progress(f"{contender.name}: {cell}")
    requests = traffic.Traffic(traffic.load(place.traffic))
    encoder = PairEncoder.load(place.checkpoint)
    largest = max(arguments.documents)
    sizes = [size for size in limits.SIZES if size <= max(largest, 5)]  # a line needs a few
    for one in own:
        alone = engine(place, one.name.partition(" ")[2])
        findings.limits[one.name] = limits.limits(one, alone, place.work, largest, arguments.rounds, arguments.seconds)
        findings.tails[one.name] = limits.tail(one, max(arguments.seconds, 1.0) * 2)
        findings.growth[one.name] = limits.growth(one, requests, encoder, arguments.seconds / 3, sizes)
        progress(f"{one.name}: limits")
    return findings


def _wide(arguments: ServingArguments, asked: Sequence[tuple[int, int]], compared: Sequence[Cell]) -> Iterator[Cell]:
    """Cells that the best systems are measured in once."""
    done = {cell.shape for cell in compared}
    for documents, concurrency in asked:
        if (documents, concurrency) not in done and documents * concurrency <= IN_FLIGHT:
            yield Cell(documents, concurrency, arguments.seconds)
    shape = max(done, key=lambda each: each[1])
    for share in REPEATED:
        yield Cell(*shape, arguments.seconds, repeated=share)


def _best_peers(findings: Findings, compared: Sequence[Cell]) -> list[Contender]:
    """The fastest of each kind in the cell with the most callers."""
    shape = max((cell.shape for cell in compared), key=lambda each: each[1])
    kinds = dict.fromkeys(one.system.kind for one in findings.contenders if one.system.kind != OURS)
    return [peer for kind in kinds if (peer := best(findings, kind, shape)) is not None]


def best(findings: Findings, kind: str, shape: tuple[int, int]) -> Contender | None:
    """The fastest system of a kind in a cell, among those that rank as well as the checkpoint."""
    speeds = {
        contender.name: Spread.of([each.sample.documents_per_second for each in measured]).median
        for contender in findings.contenders
        for cell, measured in contender.results.items()
        if cell.shape == shape and not cell.repeated
    }
    able = [
        contender
        for contender in findings.contenders
        if contender.system.kind == kind
        and contender.name in speeds
        and (quality := findings.qualities.get(contender.name)) is not None
        and quality.passes
    ]
    return max(able, key=lambda contender: speeds[contender.name], default=None)
