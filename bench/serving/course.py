"""The course of a run: its files are made, the systems start, and they are measured."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from bench.environments import BenchError
from bench.serving import limits
from bench.serving.arguments import ServingArguments
from bench.serving.contenders import LONGEST_S, Contender, Progress, best_peers, measure, rounds, start
from bench.serving.load import Cell, Pair
from bench.serving.quality import Judge
from bench.serving.systems import OURS, PEERS, Place, System, build_ours, engine, ours, peer
from bench.serving.traffic import Traffic
from bench.training import material
from model_repository.tokenizer.pair_encoding import ENCODING_FILE, PairEncoder
from trainer.data.records import QueryGroup, read_groups

COMPARED = ((1, 1), (10, 1), (10, 16), (100, 1), (1000, 1))  # by all systems in all rounds; the rest by the best, once
IN_FLIGHT = 400  # documents of all callers, of those cells that only fill the queue
REPEATED = (0.5, 0.9)
CALIBRATION_PAIRS = 300


def prepared(arguments: ServingArguments, groups: Sequence[QueryGroup], work: Path) -> Place:
    """The files of the run: the student, the traffic, texts to calibrate with."""
    source = arguments.student
    if source and (Path(source) / ENCODING_FILE).is_file():  # a scorer of ours; anything else gets a new head
        checkpoint = Path(source).absolute()
    else:
        checkpoint = Path(material.student(source, work / "student"))
    if set(arguments.systems) > {OURS}:
        material.refuse_own_head(checkpoint)
    others = _pairs(read_groups(*arguments.calibration) if arguments.calibration else groups)
    each = max(1, CALIBRATION_PAIRS // len(others))
    shared = {
        "checkpoint": checkpoint,
        "traffic": _pairs(groups),
        "calibration": [(query, documents[:each]) for query, documents in others[:CALIBRATION_PAIRS]],
        "max_pair_tokens": PairEncoder.load(checkpoint).config.max_pair_tokens,
        "threads": arguments.threads,
    }
    place = Place(work, shared)
    shutil.rmtree(place.made, ignore_errors=True)  # perhaps of another checkpoint
    place.made.mkdir()
    return place


def _pairs(groups: Sequence[QueryGroup]) -> list[Pair]:
    found = [(group.query, tuple(filter(None, map(material.text, group.documents)))) for group in groups]
    return [(query, documents) for query, documents in found if documents]


def started(
    arguments: ServingArguments, place: Place, judge: Judge, stack: ExitStack, bar: Any
) -> tuple[list[Contender], dict[str, str]]:
    """Systems that run at their best settings, and the reasons why the others do not run."""
    gate = judge.save(place.work / "judged.jsonl")
    contenders, failed = list[Contender](), dict[str, str]()
    own = [f"{OURS} {build}" for build in arguments.builds]
    for name in [*own, *(each for each in PEERS if each in arguments.systems)]:
        bar.set_description(f"starting {name}")
        try:
            contender = start(_system(name, arguments, place, gate), place.work, stack)
            if sum(len(group.documents) for group in judge.groups) / contender.speed < LONGEST_S:
                contender.quality = judge.quality(contender.process.ask("scores", judge.pairs()))
        except BenchError as error:
            failed[name] = str(error)
            continue
        contenders.append(contender)
    if not any(contender.is_ours for contender in contenders):
        raise BenchError(next(iter(failed.values())))
    return contenders, failed


def _system(name: str, arguments: ServingArguments, place: Place, gate: Path) -> System:
    if not name.startswith(f"{OURS} "):
        return peer(name, place, Path(arguments.environments).absolute())
    build = name.partition(" ")[2]
    print(build_ours(place, build, gate, arguments.calibration), file=sys.stderr)
    return ours(place, build)


def measured(
    arguments: ServingArguments, place: Place, contenders: list[Contender], progress: Progress
) -> dict[str, limits.Bounds]:
    """Fill the contenders' results. Returns the bounds of our own systems, by name."""
    asked = list(product(arguments.documents, arguments.concurrency))
    shapes = [shape for shape in asked if shape in COMPARED] or asked[:1]
    compared = [Cell(*shape, arguments.seconds) for shape in shapes]
    rounds(contenders, compared, arguments.rounds, progress)
    own, busiest = [one for one in contenders if one.is_ours], max(compared, key=lambda cell: cell.concurrency)
    for cell in _wide(arguments, [shape for shape in asked if shape not in shapes], busiest):
        for contender in [*own, *best_peers(contenders, busiest)]:
            measure(contender, cell, seed=0)
            progress(f"{contender.name}: {cell}")
    traffic, encoder = Traffic(place.shared["traffic"]), PairEncoder.load(place.shared["checkpoint"])
    largest, seconds = max(arguments.documents), arguments.seconds
    sizes = [size for size in limits.SIZES if size <= max(largest, 5)]  # a line needs a few
    bounds = {}
    for one in own:
        alone = engine(place, one.name.partition(" ")[2])
        bounds[one.name] = limits.Bounds(
            limits.limits(one, alone, place.work, largest, arguments.rounds, seconds),
            limits.tail(one, max(seconds, 1.0) * 2),
            limits.growth(one, traffic, encoder, seconds / 3, sizes),
            limits.ways(one, [*compared, *_repeated(arguments, busiest)]),
        )
        progress(f"{one.name}: limits")
    return bounds


def _wide(arguments: ServingArguments, others: Sequence[tuple[int, int]], busiest: Cell) -> Iterator[Cell]:
    """Cells that the best systems are measured in once."""
    for documents, concurrency in others:
        if documents * concurrency <= IN_FLIGHT:
            yield Cell(documents, concurrency, arguments.seconds)
    yield from _repeated(arguments, busiest)


def _repeated(arguments: ServingArguments, busiest: Cell) -> Iterator[Cell]:
    for share in REPEATED:
        yield Cell(*busiest.shape, arguments.seconds, repeated=share)
