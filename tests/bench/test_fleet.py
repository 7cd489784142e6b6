"""The benches of several servers and hosts judge what they measured. Servers and hosts are in other tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from bench import capacity, fleet, hosts, phases
from bench.phases import KILLED, REPLACED, SLOW, STEADY, Asked
from loadtest.capacity._measured import read_curve
from tests.loadtest.test_capacity import HELD, LIMIT_MS, RATES, report


def asked(phase: str, **late: float) -> list[Asked]:
    """Ten requests a second for ten seconds, which take 20 ms, but one of a second's that takes as long as ``late``."""
    times = {float(name.removeprefix("at_")): took for name, took in late.items()}
    return [Asked(phase, tenth / 10, times.get(tenth / 10, 20.0)) for tenth in range(100)]


def test_a_fleet_is_well_if_nothing_failed_and_the_p99_was_back_in_time() -> None:
    failed = Asked(REPLACED, 1.0, 20.0, "no server answers")
    every = [*asked(STEADY), *asked(KILLED, at_0=300.0, at_2=90.0), *asked(SLOW, at_7=90.0), *asked(REPLACED), failed]
    steady, killed, slow, replaced = phases.report(every)
    assert [one.later_ms for one in (steady, killed, slow, replaced)] == [20, 20, 90, 20]
    assert [one.good() for one in (steady, killed, slow, replaced)] == [True, True, False, False]
    assert (killed.worst_second_ms, replaced.failed) == (300, 1)


@pytest.mark.parametrize("losses", [[2.0], [2.0, 1.0, 0.5], [2.0, float("nan")], [2.0, 1.1]])
def test_loss_curves_are_the_same_only_if_every_loss_is(losses: list[float]) -> None:
    assert hosts.apart([2.0, 1.0], [2.0, 1.0]) <= hosts.SAME
    assert not hosts.apart([2.0, 1.0], losses) <= hosts.SAME


@pytest.mark.parametrize(
    ("bench", "flags", "message"),
    [
        (fleet, ["--rate", "nan"], "--rate nan: "),
        (fleet, ["--seconds", "5"], "--seconds 5: "),
        (fleet, ["--queries", "nowhere.jsonl"], "nowhere.jsonl"),
        (hosts, ["--model=m", "--data=d", "--scores=s", "--output_dir=o", "--queries=3"], "--queries must be even"),
    ],
)
def test_bad_flags_are_one_line(
    bench: ModuleType, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_measured_rate_is_between_its_steps(tmp_path: Path) -> None:
    paths = [tmp_path / f"{rate:g}.json" for rate in RATES]
    for rate, path in zip(RATES, paths, strict=True):
        path.write_text(json.dumps(report(rate)))
    assert capacity.measured_rate(read_curve(paths), LIMIT_MS) == pytest.approx(HELD, rel=0.03)
