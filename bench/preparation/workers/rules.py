"""The rules beside joins that decide the result, for libraries whose workers have nothing of ours but this."""

from __future__ import annotations

import hashlib
import unicodedata
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

CANDIDATES, MIN_DWELL_S, MAX_CLICK_WEIGHT = 50, 5.0, 10.0
SESSION_QUERIES, SESSION_CLICKS, SESSION_S = 100, 200, 24 * 3600
DEV_SHARE, TEST_SHARE = 0.05, 0.1
LOGS = {"train": "log", "dev": "log-dev", "test": "log-test"}


def given(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("log", type=Path, help="folder of bench.preparation.log")
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir()
    return arguments


def weights(log: Path) -> dict[int, float]:
    """The weight of a click at each position."""
    lines = (log / "propensities.tsv").read_text(encoding="utf-8").splitlines()
    shares = {int(place): float(share) for place, share in (line.split("\t") for line in lines)}
    return {place: min(1 / share, MAX_CLICK_WEIGHT) for place, share in shares.items()}


def form(raw: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", raw).split())


def query_id(key: str) -> str:
    return "q" + hashlib.md5(key.encode()).hexdigest()[:16]


def split(key: str) -> str:
    place = int(hashlib.md5(f"split {key}".encode()).hexdigest()[:12], 16) / 2**48
    return "test" if place < TEST_SHARE else "dev" if place < TEST_SHARE + DEV_SHARE else "train"
