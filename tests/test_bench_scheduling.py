"""The policy that serves, against the others, in the simulation."""

from __future__ import annotations

import pytest

from bench.scheduling import POLICIES, Job, Times, Traffic, main, measure, simulate


def times(name: str, traffic: Traffic, seed: int) -> Times:
    return measure(POLICIES[name], traffic, seed, seconds=300)


@pytest.mark.parametrize("seed", range(3))
def test_small_requests_pass_large_ones_and_these_do_not_pay_more_than_with_turns(seed: int) -> None:
    traffic = Traffic(0.5, 0.2)
    fair, first_come, turns = (times(name, traffic, seed) for name in ("fair", "first come", "round robin"))
    assert fair.small_p99 < 0.2 * first_come.small_p99
    assert fair.small_p99 < 4 * fair.small_p50
    assert fair.large_mean < turns.large_mean


def test_calls_are_filled_and_time_goes_on_when_nobody_waits() -> None:
    jobs = [Job(0.0, 4, 4), Job(1.0, 10, 10), Job(100.0, 4, 4)]
    simulate(POLICIES["first come"], jobs)
    assert [job.ended for job in jobs] == [4.0, 14.0, 104.0]


def test_the_command_prints_every_policy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scheduling.TRAFFIC", (Traffic(0.1, 0.01),))
    assert main([]) == 0
    assert all(name in capsys.readouterr().out for name in POLICIES)
    assert main(["--fast"]) == 2
