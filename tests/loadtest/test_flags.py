"""Flags that do not go together, or make no sense."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest

from loadtest._flags import Settings, add_flags, read_settings
from loadtest._search import Objective


def settings(*flags: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    own: dict[str, Any] = {"headless": True, "num_users": None, "run_time": None, "master": False, "worker": False,
                           "processes": None}  # fmt: skip
    for name, default in own.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=lambda text: int(text), default=default)
    return read_settings(parser.parse_args(flags))


def test_users_wait_unless_a_rate_or_an_objective_is_given() -> None:
    waiting, rate = settings("--num-users", "4", "--run-time", "10"), settings("--rate", "50")
    assert not settings().is_open and not waiting.is_open
    assert (rate.rate, rate.plan, rate.objective, rate.seconds) == (50, None, None, math.inf)
    checked, searched = settings("--rate", "50", "--slo-p99-ms", "10"), settings("--slo-p99-ms", "10")
    assert (checked.plan, checked.objective) == (None, Objective(10, 0.001))
    assert searched.plan is not None and searched.seconds == 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rate 50 --headless 0", "--rate needs --headless"),
        ("--slo-p99-ms 10 --headless 0", "--slo-p99-ms needs --headless"),
        ("--rate 50 --num-users 4", "--rate or --users, not both"),
        ("--rate 50 --processes 4", "--rate runs in one process"),
        ("--rate 0", "--rate 0: a number above 0"),
        ("--slo-p99-ms -1", "--slo-p99-ms -1: a number above 0"),
        ("--rate 5 --timeout 0", "--timeout 0: a number above 0"),
        ("--rate 5 --warm-up -1", "--warm-up -1: seconds"),
        ("--slo-p99-ms 5 --error-budget 1", "--error-budget 1: a share"),
        ("--rate 5 --in-flight 0", "--in-flight 0: at least 1"),
        ("--slo-p99-ms 5 --lowest-rate 50 --highest-rate 5", "rates from 50 to 5"),
        ("--slo-p99-ms 5 --lowest-rate 0", "rates from 0 to 10000"),
        ("--slo-p99-ms 5 --tries 0", "0 tries"),
        ("--slo-p99-ms 5 --step-factor 1", "a step factor of 1"),
        ("--slo-p99-ms 5 --tolerance 0", "a tolerance of 0"),
        ("--documents many", "--documents 'many' is none of"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(*flags.split())


def numbers() -> list[str]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return [action.option_strings[0] for action in parser._actions if action.type is float]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300"])
@pytest.mark.parametrize("flag", numbers())
def test_numbers_that_cannot_be_meant_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"a number above 0|seconds, from|a share, from|rates from|factor|tolerance"):
        settings("--slo-p99-ms=5", f"{flag}={value}")
