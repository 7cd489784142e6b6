"""The policy that serves, against the others, in the simulation."""

from __future__ import annotations

import pytest

from bench.scheduling import POLICIES, SERVED, Job, Times, Traffic, main, measure, simulate


def times(name: str, traffic: Traffic, seed: int) -> Times:
    return measure(POLICIES[name], traffic, seed, seconds=300)


@pytest.mark.parametrize("seed", range(3))
def test_small_requests_pass_large_ones_which_end_sooner_than_with_turns(seed: int) -> None:
    traffic = Traffic(0.5, 0.2)
    served, first_come, turns = (times(name, traffic, seed) for name in (SERVED, "first come", "round robin"))
    assert served.small_p99 < 0.2 * first_come.small_p99
    assert served.small_p99 < 4 * served.small_p50
    assert served.large_mean < turns.large_mean


def test_large_requests_end_though_small_ones_would_fill_the_engine() -> None:
    traffic = Traffic(1.0, 0.1)
    assert times(SERVED, traffic, 0).large_worst < 0.5 * times("shortest left", traffic, 0).large_worst


def test_calls_are_filled_and_time_goes_on_when_nobody_waits() -> None:
    jobs = [Job(0.0, 4, 4), Job(1.0, 10, 10), Job(100.0, 4, 4)]
    simulate(POLICIES["first come"], jobs)
    assert [job.ended for job in jobs] == [4.0, 14.0, 104.0]


def test_the_command_prints_every_policy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scheduling.TRAFFIC", (Traffic(0.1, 0.01),))
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in POLICIES)
    assert main(["--fast"]) == 2
