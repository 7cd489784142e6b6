"""The bench of preparations: what it compares is the same work, and what differs or takes too much memory is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.environments import BenchError
from bench.preparation import __main__ as bench
from bench.preparation.log import write_log
from bench.preparation.runs import GIB, Run, System, TooMuchMemoryError, content, run

IMPRESSIONS = 20_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    write_log(folder, IMPRESSIONS)
    return folder


def test_the_same_seed_draws_the_same_log(log: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "again", IMPRESSIONS)
    write_log(tmp_path / "other", IMPRESSIONS, seed=1)
    same, other = ([*(tmp_path / name).rglob("*.parquet")] for name in ("again", "other"))
    of_log = {path.name: path.read_bytes() for path in log.rglob("impressions/*.parquet")}
    assert of_log == {path.name: path.read_bytes() for path in same if path.parent.name == "impressions"}
    assert of_log != {path.name: path.read_bytes() for path in other if path.parent.name == "impressions"}


def test_a_peer_leaves_the_same_records(log: Path, tmp_path: Path) -> None:
    arguments = bench.PreparationArguments(threads=1)
    ours = bench.system_of("ours", arguments)
    # In the bench it has an environment of its own; pandas is here, too.
    pandas = System("pandas", [sys.executable, "-m", "bench.preparation.workers.with_pandas", "{log}", "{output}"])
    for system in (ours, pandas):
        system.runs.append(run(system, log, tmp_path, 1, 8 * GIB))
    bench.require_equal([ours, pandas])
    (made,) = ours.runs
    assert made.seconds > 0 and made.peak_bytes > GIB // 20
    assert made.files.keys() == {"log", "log-dev", "log-test", "pool"}
    assert all(file.pairs >= file.queries > 0 for file in made.files.values())
    # Clicks are weighed by their position, so that their sum is above their number.
    assert made.files["log"].clicks > made.files["log"].pairs

    other = Run(made.seconds, made.peak_bytes, {**made.files, "log": made.files["log"]._replace(clicks=0.0)})
    with pytest.raises(BenchError, match=r"^pandas and ours differ"):
        bench.require_equal([ours, System("pandas", [], runs=[other])])


def test_a_system_that_needs_too_much_memory_is_ended(log: Path, tmp_path: Path) -> None:
    greedy = System("greedy", [sys.executable, "-c", "x = bytes(1) * 2**29; import time; time.sleep(600)"])
    with pytest.raises(TooMuchMemoryError, match=r"more than 0\.25 GiB"):
        run(greedy, log, tmp_path, 1, GIB // 4)


def test_a_system_that_fails_says_why(log: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"broken: ValueError: 3"):
        run(System("broken", [sys.executable, "-c", "raise ValueError(3)"]), log, tmp_path, 1, GIB)


def test_a_change_within_a_record_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    found = []
    for title in ("one", "two"):
        path.write_text(f'{{"query_id": "q", "documents": [{{"title": "{title}", "clicks": 1.5}}]}}\n')
        found.append(content(path))
    assert found[0][:3] == found[1][:3] == (1, 1, 1.5)
    assert found[0].checksum != found[1].checksum


def test_growth_is_a_line_over_three_sizes() -> None:
    systems = {
        size: [System("ours", [], runs=[Run(2 + size / 1e6, 0, {})])] for size in (1_000_000, 2_000_000, 4_000_000)
    }
    assert bench.growth(systems) == ["ours: 2.0 s and 1.00 s a million, a straight line that explains 100.00%"]
    del systems[4_000_000]
    assert bench.growth(systems) == []
