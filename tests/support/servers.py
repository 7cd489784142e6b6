"""Real servers for tests: built repositories, free ports, starting and stopping."""

from __future__ import annotations

import math
import re
import ssl
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import build_engines
from bench.children import Child, free_ports, healthy, started, triton
from engines.parity import LIMITS
from model_repository.student.runtime.graphs import has_int8_units
from model_repository.tokenizer.pair_encoding import Document, FloatArray, PairEncoder
from tests.support.checkpoints import write_groups
from tests.support.waiting import eventually
from trainer.checkpoints.load import PackedScorer, load_scorer

COMMAND = Path(sys.executable).with_name("tritonserver")
UNASKED = ("--hang-timeout-secs=0",)  # the canary's requests would be among those that tests count
READY_S, STOP_S = 180, 120  # on a machine that has other work
# Products of the served checkpoint that int8 takes: of two layers, and in the last one only keys and values.
INT8_PRODUCTS = 6 + 2
# What a manifest says of them, when ``build`` has calibrated them.
INT8_RECORD = {
    "products": INT8_PRODUCTS, "kept": [], "calibration_queries": 8, "calibration_rows": 8,
    "full_range": has_int8_units(),
}  # fmt: skip
INT8_TAU = 0.8  # below the gate's limit: texts of every script and length are not what int8 was calibrated on


@dataclass(frozen=True)
class Server(Child):
    """A Triton on these ports, by endpoint."""

    ports: dict[str, int]

    @property
    def url(self) -> str:
        """Where its gRPC is."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['metrics']}/metrics"

    def metrics(self, name: str) -> float:
        return metric(self.metrics_url, name)


def metric(url: str, name: str, tls: ssl.SSLContext | None = None, /, **labels: str) -> float:
    """The sum of a metric of a server over the labels that are not given; 0 if there is none of that name."""
    total = 0.0
    with urllib.request.urlopen(url, context=tls) as answer:
        for line in answer.read().decode().splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
    return total


def build(checkpoint: Path, repository: Path, precision: str, *more: str, engine: str = "openvino") -> Path:
    data = write_groups(repository.parent / f"{repository.name}.jsonl", queries=8)
    flags: dict[str, object] = {"checkpoint": checkpoint, "data": data, "engine": engine, "precision": precision}
    if precision == "int8":
        flags["calibration"] = write_groups(repository.parent / "calibration.jsonl", queries=8, seed=1, name="c")
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        # Drawn weights rank by chance, and on some processors one swap in eight queries would be too much.
        patch.setitem(LIMITS, "int8", LIMITS["int8"]._replace(ndcg=math.inf))
        assert build_engines.main([*argv, "--model_repository", str(repository), *more]) == 0
    return repository


def ports() -> dict[str, int]:
    """A free port for each of Triton's endpoints."""
    return free_ports("http", "grpc", "metrics")


@contextmanager
def starting(
    repository: Path, log: Path, *flags: str, at: dict[str, int] | None = None, verbose: bool = True
) -> Iterator[Server]:
    """A server that may not be ready yet, on free ports or those given; at the end of the block it is stopped, if it
    runs still."""
    free = at or ports()
    shown = ["--verbose"] if verbose else []
    with started([*triton(repository, free), *UNASKED, *shown, *flags], log) as child:
        yield Server(child.process, log, free)


@contextmanager
def running(repository: Path, log: Path, *flags: str) -> Iterator[Server]:
    """A server that is ready; it ends with exit code 0 and leaves no process."""
    with starting(repository, log, *flags) as server:
        wait_until_ready(server)
        yield server
        family = descendants(server.process.pid)
        server.process.terminate()
        assert server.process.wait(STOP_S) == 0, log.read_text()
        wait_until_ended(family)


def wait_until_ready(server: Server) -> None:
    server.wait_until(lambda: healthy(server.ports["http"]))


def descendants(pid: int) -> list[psutil.Process]:
    family: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return family


def wait_until_ended(family: Sequence[psutil.Process]) -> None:
    eventually(lambda: not any(_runs(process) for process in family))


def _runs(process: psutil.Process) -> bool:
    """A zombie that init has not yet reaped has ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@dataclass(frozen=True)
class Expected:
    """PyTorch in float32: ``scores[N]`` (logits) and what was cut, ``truncated[N]``."""

    scores: FloatArray
    truncated: list[bool]


class Reference:
    """The answers that a server must give, from the checkpoint; kept, since tests send the same large requests."""

    def __init__(self, checkpoint: Path) -> None:
        self.encoder = PairEncoder.load(checkpoint)
        self._scorer = PackedScorer(load_scorer(checkpoint, self.encoder))
        self._answers: dict[tuple[str, tuple[Document, ...]], Expected] = {}

    def __call__(self, query: str, documents: Sequence[Document]) -> Expected:
        asked = query, tuple(documents)
        if asked not in self._answers:
            pairs = self.encoder.encode(*asked)
            self._answers[asked] = Expected(self._scorer.score(self.encoder.pack(pairs)), pairs.truncated.tolist())
        return self._answers[asked]
