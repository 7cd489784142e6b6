"""The position-based click model finds the propensities that a log was generated with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.records import DataError
from trainer.preparation.propensities import estimate, filled, read_propensities

POSITIONS = 10
TRUE = np.arange(1, POSITIONS + 1) ** -0.7


def generated(seed: int, pairs: int, sessions: int) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    """Cells of a log in which documents wander over three to five places, the attractive ones higher up."""
    draw = np.random.default_rng(seed)
    alpha = draw.beta(1, 3, pairs)
    usual = np.clip(np.round(POSITIONS * (1 - alpha) + draw.normal(0, 2, pairs)), 1, POSITIONS).astype(int)
    pair = np.repeat(np.arange(pairs), sessions)
    position = np.clip(usual[pair] + draw.integers(-2, 3, len(pair)), 1, POSITIONS)
    clicked = draw.random(len(pair)) < TRUE[position - 1] * alpha[pair]
    cell = pair * POSITIONS + position - 1
    shown, clicks = np.bincount(cell), np.bincount(cell, clicked)
    there = np.flatnonzero(shown)
    return there // POSITIONS, there % POSITIONS + 1, shown[there].astype(float), clicks[there]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("pairs", "sessions"), [(8000, 500), (500_000, 4)], ids=["dense", "sparse"])
def test_propensities_of_a_generated_log_are_within_5_percent(seed: int, pairs: int, sessions: int) -> None:
    found = estimate(*generated(seed, pairs, sessions))
    assert list(found) == list(range(1, POSITIONS + 1))
    assert np.abs(np.array(list(found.values())) / TRUE - 1).max() < 0.05


def test_the_rates_of_clicks_alone_would_not_do() -> None:
    """Attractive documents stand higher, which clicks by position cannot tell from the bias."""
    _, position, shown, clicks = generated(0, 2000, 500)
    rates = np.bincount(position, clicks)[1:] / np.bincount(position, shown)[1:]
    assert np.abs(rates / rates[0] / TRUE - 1).max() > 0.3


def test_a_log_in_which_nothing_moves_has_no_propensities() -> None:
    still = np.arange(10)
    with pytest.raises(DataError, match="at several positions"):
        estimate(still, still + 1, np.full(10, 5.0), np.ones(10))


# Pairs at positions, each with how often it was shown and clicked there. The first document tells of positions 1 and 2.
COMPARED = [(0, 1, 8, 4), (0, 2, 8, 2)]


@pytest.mark.parametrize(
    "others",
    [
        [(0, 3, 8, 0)],  # nobody clicks at 3
        [(1, 5, 4, 2), (1, 6, 4, 2)],  # nothing moves between 1, 2 and 5, 6
        [(0, 5, 8, 0), (1, 5, 4, 2), (1, 6, 4, 2)],  # or nobody clicks on what does
    ],
    ids=["unclicked", "apart", "apart by clicks"],
)
def test_positions_that_nothing_compares_with_the_first_are_left_out(others: list[tuple[int, ...]]) -> None:
    pair, position, shown, clicks = np.array(COMPARED + others).T
    assert estimate(pair, position, shown.astype(float), clicks.astype(float)) == pytest.approx({1: 1.0, 2: 0.5})


def test_a_first_position_that_nothing_compares_is_an_error() -> None:
    pair, position, shown, clicks = np.array([(0, 1, 8, 0), (0, 2, 8, 2), (0, 3, 8, 1)]).T
    with pytest.raises(DataError, match="the first position"):
        estimate(pair, position, shown.astype(float), clicks.astype(float))


def test_positions_without_a_value_have_that_above() -> None:
    assert filled({1: 1.0, 3: 0.5}, 4) == {1: 1.0, 2: 1.0, 3: 0.5, 4: 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1\n1 0.5\n", ":2: position 1 again"),
        ("1 1\n2 0\n", ":2: '2 0'"),
        ("0 1\n", ":1: '0 1'"),
        ("", "no positions"),
    ],
)
def test_a_file_of_propensities_is_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_propensities(str(tmp_path / "p.tsv"))
