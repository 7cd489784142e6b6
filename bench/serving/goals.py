"""What was wanted, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.serving.job import Cell
from bench.serving.limits import Growth, Limits, Tail
from bench.serving.quality import Quality
from bench.serving.rounds import Contender
from bench.serving.systems import OURS
from bench.spread import Spread, ratios, times

LARGE, MANY = (1000, 1), (10, 16)  # documents, concurrency
LINEAR = 0.99  # of the variance


@dataclass(frozen=True)
class Goal:
    """``reached`` is None where this run measured nothing of it."""

    text: str
    measured: str
    reached: bool | None


@dataclass(frozen=True)
class Findings:
    contenders: Sequence[Contender]
    qualities: Mapping[str, Quality]
    limits: dict[str, Limits]
    tails: dict[str, Tail]
    growth: dict[str, Growth]


def goals(findings: Findings) -> list[Goal]:
    """Only systems of equal quality count, on both sides."""
    return [
        _faster(findings, "sentence-transformers", LARGE, 1.4),
        _faster(findings, "sentence-transformers", MANY, 2.5),
        _faster(findings, "infinity", LARGE, 3.0),
        _faster(findings, "infinity", MANY, 3.0),
        _of_engine(findings, 0.85),
        _of_matrices(findings, 0.5),
        _tail(findings, 3.0),
        _linear(findings),
    ]


def best(findings: Findings, kind: str, shape: tuple[int, int]) -> Contender | None:
    """The fastest of a kind in a cell, among those of equal quality."""
    able = [
        one
        for one in findings.contenders
        if one.system.kind == kind
        and (quality := findings.qualities.get(one.name)) is not None
        and quality.passes
        and _cell(one, shape)
    ]
    return max(able, key=lambda one: Spread.of(speeds(one, shape)).median, default=None)


def speeds(contender: Contender, shape: tuple[int, int]) -> list[float]:
    cell = _cell(contender, shape)
    return [each.sample.documents_per_second for each in contender.results[cell]] if cell else []


def _cell(contender: Contender, shape: tuple[int, int]) -> Cell | None:
    found = (cell for cell in contender.results if cell.shape == shape and not cell.repeated)
    return next(found, None)


def _faster(findings: Findings, kind: str, shape: tuple[int, int], wanted: float) -> Goal:
    text = f"{wanted}x {kind}, requests of {shape[0]:,} at concurrency {shape[1]}"
    one, other = best(findings, OURS, shape), best(findings, kind, shape)
    if one is None or other is None:
        return Goal(text, "no system of equal quality on one side", None)
    ratio = ratios(speeds(one, shape), speeds(other, shape))
    return Goal(text, f"{times(ratio)}: {one.name} over {other.name}", ratio.median >= wanted)


def _of_engine(findings: Findings, wanted: float) -> Goal:
    measured = [f"{name} {each.share.median:.0%}" for name, each in findings.limits.items()]
    reached = all(each.share.median >= wanted for each in findings.limits.values()) if measured else None
    return Goal(f"{wanted:.0%} of the engine alone", ", ".join(measured), reached)


def _of_matrices(findings: Findings, wanted: float) -> Goal:
    text = f"the int8 engine at {wanted:.0%} of the int8 matrix limit"
    of_int8 = {name: each for name, each in findings.limits.items() if name.endswith("-int8")}
    if not of_int8:
        return Goal(text, "", None)
    measured = [
        f"{name} {each.matrix_share:.0%}, matrices ran in {each.matrices_run_in}" for name, each in of_int8.items()
    ]
    return Goal(text, ", ".join(measured), all(each.matrix_share >= wanted for each in of_int8.values()))


def _tail(findings: Findings, wanted: float) -> Goal:
    text = f"p99 below {wanted:g}x the median: requests of 10, concurrency 8, 70% load"
    tails = findings.tails
    measured = [f"{name} {each.ratio:.1f}x ({each.p99:.0f} of {each.p50:.0f} ms)" for name, each in tails.items()]
    return Goal(text, ", ".join(measured), all(each.ratio < wanted for each in tails.values()) if tails else None)


def _linear(findings: Findings) -> Goal:
    text = f"cost linear in tokens, 1 to 1,000 documents: a line explains {LINEAR:.0%}"
    measured = [f"{name} {each.r_squared:.2%}" for name, each in findings.growth.items()]
    reached = all(each.r_squared >= LINEAR for each in findings.growth.values()) if measured else None
    return Goal(text, ", ".join(measured), reached)
