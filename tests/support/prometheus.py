"""A real Prometheus with the files of deploy/, for tests."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.servers import ports

DEPLOY = Path(__file__).parents[2] / "deploy"
UNPACKED = Path(sys.executable).parents[1] / ".prometheus/usr/bin"  # where the Makefile puts Debian's package
PATIENCE_S = 180


def command(name: str) -> str:
    """``prometheus`` or ``promtool``."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    assert found, f"{name} is neither on the PATH nor in {UNPACKED}: make test puts it there"
    return found


@dataclass(frozen=True)
class Prometheus:
    """One that answers at ``url``."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API; an error or a warning of it fails the test."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            found = json.load(answer)
        assert found["status"] == "success" and not found.get("warnings"), found
        return found["data"]

    def values(self, expression: str, at: float | None = None) -> dict[str, float]:
        """Values of an expression ``at`` a time (or now), by its labels' values in the order of their names, without
        what is no number (0/0)."""
        samples = self.ask("query", query=expression, time=str(at or time.time()))["result"]
        named = {
            " ".join(value for _, value in sorted(sample["metric"].items())): float(sample["value"][1])
            for sample in samples
        }
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def wait_for(self, expression: str, least: float) -> None:
        """Until the sum of its values is so much."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := sum(self.values(expression).values())) < least:
            assert time.monotonic() < deadline, f"{expression} is {found} and not {least} after {PATIENCE_S} s"
            time.sleep(0.1)


@contextmanager
def scraping(targets: dict[str, str], directory: Path) -> Iterator[Prometheus]:
    """Prometheus with the files of deploy/, with ``targets`` in the place of its addresses, and scraping often."""
    config = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    for written, wanted in {**targets, "15s": "250ms"}.items():
        assert written in config
        config = config.replace(written, wanted)
    (directory / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yml", directory)
    address = f"127.0.0.1:{ports()['http']}"
    flags = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": address}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [command("prometheus"), *(f"--{name}={value}" for name, value in flags.items())],
            stdout=log, stderr=subprocess.STDOUT, cwd=directory,
        )  # fmt: skip
    try:
        _wait_until_ready(process, address, directory / "log")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready"):
                return
        except OSError:  # not listening yet, or 503 while it starts
            time.sleep(0.1)
    raise AssertionError(f"not ready after {PATIENCE_S} s: {log.read_text()}")
