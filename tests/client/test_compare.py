"""python -m client.compare: two rankings side by side, by a running server and one whose scores are known."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from client import RankingClient, compare
from client.agreement import kendall_tau
from client.outputs import columns
from tests.support.clients import SCORES_ABS
from tests.support.odd_servers import OddServer, odd_server
from tests.support.servers import Server, ports

QUERY = "garden bridge"
NAMES = ["中文 标题" * 9, "b", "c" * 300, "d", "e"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"doc_id": f"d{place}", "title": name}) for place, name in enumerate(NAMES)))
    return path


@pytest.fixture
def compared(run: Any, file: Path) -> Callable[..., tuple[int, list[str], list[str]]]:
    def compared(left: str, right: str, *flags: object) -> tuple[int, list[str], list[str]]:
        found: tuple[int, list[str], list[str]] = run(
            "--query", QUERY, file, "--left", left, "--right", right, *flags, main=compare.main
        )
        return found

    return compared


@pytest.fixture
def two() -> Any:
    """Servers that rank 0 1 2 3 4 and 1 0 2 4 3."""
    with (
        odd_server(OddServer(lambda count: -np.arange(count))) as left,
        odd_server(OddServer(lambda count: np.array([4, 5, 3, 1, 2])[:count])) as right,
    ):
        yield f"@{left}", f"@{right}"


def test_a_table_as_wide_as_the_terminal(two: tuple[str, str], compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (60, 100, 161):
        monkeypatch.setenv("COLUMNS", str(width))
        code, lines, _ = compared(*two, "--format", "table")
        assert code == 0
        assert all(columns(line) <= width for line in lines)
        head, *rows, empty, summary = lines[:8]
        assert "moved" in head and empty == ""
        assert [row.split()[2] for row in rows] == ["d0", "d1", "d2", "d3", "d4"]
        arrows = [next(part for part in row.split() if part[0] in "=↑↓") for row in rows]
        assert arrows == ["↑1", "↓1", "=", "↑1", "↓1"]
        at = {columns(row[: row.index(arrow)]) for row, arrow in zip(rows, arrows, strict=True)}
        assert len(at) == 1  # one column, wide characters or not
        assert [row[row.index(arrow) :].split()[2] for row, arrow in zip(rows, arrows, strict=True)] == [
            "d1", "d0", "d2", "d4", "d3",
        ]  # fmt: skip
    assert lines[-1] == "5 documents, 4 moved; Kendall tau 0.600; overlap@5 1.00; cut: 0 left, 0 right"
    assert summary == lines[-1]


def test_json_lines_have_both_sides_and_the_figures(two: tuple[str, str], compared: Any) -> None:
    code, lines, _ = compared(*two, "--top_k", "2")
    assert code == 0
    *records, figures = [json.loads(line) for line in lines]
    assert [(one["doc_id"], one["moved"], one["left"]["rank"], one["right"]["rank"]) for one in records] == [
        ("d1", 1, 2, 1), ("d0", -1, 1, 2),
    ]  # fmt: skip
    assert {*records[0]["left"]} == {"rank", "score", "probability", "truncated"}
    assert figures == {
        "left": f"ranker{two[0]}", "right": f"ranker{two[1]}", "documents": 5, "moved": 4,
        "kendall_tau": pytest.approx(0.6), "overlap_at": 2, "overlap": 1.0,
    }  # fmt: skip
    for top_k, depth, share in ((1, 1, 0.0), (4, 4, 0.75), (9, 5, 1.0)):
        figures = json.loads(compared(*two, "--top_k", top_k)[1][-1])
        assert (figures["overlap_at"], figures["overlap"]) == (depth, share)


def test_a_model_against_itself_moves_nothing_and_cuts_are_marked(server: Server, file: Path, compared: Any) -> None:
    file.write_text(json.dumps({"id": "long", "summary": "winter " * 400}) + '\n{"id": "short", "title": "river"}')
    code, lines, _ = compared(f"ranker@{server.url}", f"@{server.url}", "--format", "table", "--timeout", "20")
    assert code == 0
    (long,) = [line for line in lines if "long" in line]
    assert long.count("(cut)") == 2
    assert lines[-1] == "2 documents, 0 moved; Kendall tau 1.000; overlap@2 1.00; cut: 1 left, 1 right"
    with RankingClient(server.url) as client:
        expected = client.score(QUERY, ["winter " * 400, {"title": "river"}])
    _, lines, _ = compared(f"ranker@{server.url}", f"@{server.url}")
    for record in map(json.loads, lines[:2]):
        for side in ("left", "right"):
            assert record[side]["score"] == pytest.approx(expected[record["index"]], abs=SCORES_ABS)


def test_bad_input_is_one_line(server: Server, compared: Any) -> None:
    good, nowhere = f"@{server.url}", f"127.0.0.1:{ports()['grpc']}"
    for left, right, message in (
        (good, f"@{nowhere}", f"no server answers at {nowhere}"),
        (f"other@{server.url}", good, "does not serve the model 'other'"),
        ("@", good, "a target is model@host:port, model, or @host:port"),
    ):
        code, out, err = compared(left, right, "--timeout", "20")
        assert (code, out, len(err)) == (2, [], 1)
        assert message in err[0]
    assert "--top_k must be at least 1, not 0" in compared(good, good, "--top_k", "0")[2][0]


def test_a_module_that_starts(two: tuple[str, str], file: Path) -> None:
    flags = ["--query", QUERY, "--left", two[0], "--right", two[1], str(file)]
    result = subprocess.run([sys.executable, "-m", "client.compare", *flags], capture_output=True, timeout=300)
    assert (result.returncode, result.stderr, len(result.stdout.splitlines())) == (0, b"", 6)


def test_kendalls_tau_is_scipys() -> None:
    draw = random.Random(0)
    for values in (3, 100):  # with many ties, with few
        for size in (2, 7, 50):
            left, right = ([draw.randrange(values) for _ in range(size)] for _ in range(2))
            expected = kendalltau(left, right).statistic
            found = kendall_tau(np.array(left, np.float32), np.array(right, np.float32))
            assert found == pytest.approx(expected, nan_ok=True)
    assert math.isnan(kendall_tau(np.zeros(3, np.float32), np.arange(3, dtype=np.float32)))
    assert math.isnan(kendall_tau(np.zeros(1, np.float32), np.zeros(1, np.float32)))
