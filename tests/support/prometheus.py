"""A real Prometheus with the files of deploy/, for tests."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.children import healthy, started
from tests.support.servers import ports
from tests.support.waiting import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
UNPACKED = Path(sys.executable).parents[1] / ".prometheus/usr/bin"  # where the Makefile puts Debian's package


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
        eventually(lambda: sum(self.values(expression).values()) >= least)


@contextmanager
def scraping(targets: dict[str, str], directory: Path) -> Iterator[Prometheus]:
    """Prometheus with the files of deploy/, with ``targets`` in the place of its addresses, and scraping often."""
    config = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    for written, wanted in {**targets, "15s": "250ms"}.items():
        assert written in config
        config = config.replace(written, wanted)
    (directory / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yml", directory)
    port = ports()["http"]
    flags = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": f"127.0.0.1:{port}"}
    argv = [command("prometheus"), *(f"--{name}={value}" for name, value in flags.items())]
    with started(argv, directory / "log", cwd=directory) as child:
        child.wait_until(lambda: healthy(port, "/-/ready"))
        yield Prometheus(f"http://127.0.0.1:{port}")
