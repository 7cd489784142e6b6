"""Runs of the systems: each a process of its own, whose memory is watched, and what is in the files that it leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.environments import BenchError, last_line, worker_variables

GIB = 2**30
WATCH_S = 0.05


class Content(NamedTuple):
    """A file of records: its queries, its pairs, the sum of their clicks, and a sum of the lines' checksums."""

    queries: int
    pairs: int
    clicks: float
    checksum: int


@dataclass(frozen=True)
class Run:
    """One preparation. Memory is the most that each of its processes had resident, added up."""

    seconds: float
    peak_bytes: int
    files: dict[str, Content]


@dataclass
class System:
    """A way to prepare a log, and its runs. In ``command`` {log} and {output} stand for folders."""

    name: str
    command: Sequence[str | Path]
    does_more: bool = False  # than the others, so that its files are other ones
    runs: list[Run] = field(default_factory=list)
    stopped: str = ""  # why, if it has been


class TooMuchMemoryError(BenchError):
    """A process was ended because it had more memory than it may."""


def run(system: System, log: Path, work: Path, threads: int, most_bytes: int) -> Run:
    """Raises BenchError for a command that fails, TooMuchMemoryError for one that needs more than ``most_bytes``."""
    output = work / "output"
    shutil.rmtree(output, ignore_errors=True)
    command = [str(word).format(log=log, output=output) for word in system.command]
    seconds, peak_bytes = watched(system.name, command, work / "printed", threads, most_bytes)
    files = {path.stem: content(path) for path in sorted(output.glob("*.jsonl")) if path.stem != "failed"}
    shutil.rmtree(output)
    return Run(seconds, peak_bytes, files)


def watched(name: str, command: Sequence[str], printed: Path, threads: int, most_bytes: int) -> tuple[float, int]:
    """Run the command, and return its seconds and its peak of memory in bytes, with its children's."""
    variables = {**worker_variables(threads), "POLARS_MAX_THREADS": str(threads)}
    begun, peaks = time.perf_counter(), dict[int, int]()
    with printed.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, cwd=printed.parent)
    try:
        while process.poll() is None:
            peaks |= peaks_of(process.pid)
            if sum(peaks.values()) > most_bytes:
                raise TooMuchMemoryError(f"more than {most_bytes / GIB:g} GiB of memory")
            time.sleep(WATCH_S)
        seconds = time.perf_counter() - begun
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()
    if process.returncode:
        raise BenchError(f"{name}: {last_line(printed.read_text(encoding='utf-8', errors='replace'))}")
    return seconds, sum(peaks.values())


def peaks_of(pid: int) -> dict[int, int]:
    """The most bytes that a process and each of its children have had resident so far, by their numbers."""
    found = dict[int, int]()
    with suppress(OSError, psutil.NoSuchProcess):  # it has ended meanwhile
        for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
            status = Path(f"/proc/{each}/status").read_text(encoding="utf-8")
            if "VmHWM:" in status:  # not of one that has ended and is not waited for yet
                found[each] = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return found


def content(path: Path) -> Content:
    queries, pairs, clicks, checksum = 0, 0, 0.0, 0
    with path.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            queries, pairs = queries + 1, pairs + len(record["documents"])
            clicks += sum(document.get("clicks", 0) for document in record["documents"])
            checksum += zlib.crc32(json.dumps(record, sort_keys=True).encode())
    return Content(queries, pairs, round(clicks, 2), checksum)
