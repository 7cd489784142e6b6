"""Triton's processes and their shared memory, as /proc and /dev/shm show them, and how nothing of them is left."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

MEMORY = Path("/dev/shm")
OWN = f"tritonserver-{os.getpid()}-{secrets.token_hex(4)}"  # containers that share /dev/shm may share the number
PREFIX = f"{OWN}-"  # of the regions of shared memory, by which the processes that use them are known, too
STUB = "triton_python_backend_stub"
ENDS_S = 10.0  # a process that was killed is gone long before


class Stub(NamedTuple):
    """The process of a Python model's instance, such as student_0_0."""

    instance: str
    model: str
    version: str


class State(NamedTuple):
    """The letter that /proc has (T is stopped, Z has ended), and the status that waitpid would give."""

    letter: str
    status: int


def children(pid: int) -> list[int]:
    """The children of all threads of a process."""
    found = list[int]()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread ended
            found += map(int, path.read_text().split())
    return found


def state_of(pid: int) -> State | None:
    """None where there is no such process."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return State(fields[0], int(fields[49]))
    return None


def signal_name(number: int) -> str:
    """The name, such as SIGKILL; of the real-time signals only the first and the last have one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def stub_of(pid: int) -> Stub | None:
    """None for any other process, for one that has ended, and for one that only completes a configuration."""
    arguments = _command_line(pid)
    if Path(arguments[0]).name != STUB or len(arguments) < 4:
        return None
    version = Path(arguments[1]).parent
    stub = Stub(arguments[-2], version.parent.name, version.name)
    return None if stub.instance == stub.model else stub


def sweep(prefix: str) -> None:
    """End every Triton and stub that uses the regions of this name, and remove the regions."""
    ends = time.monotonic() + ENDS_S
    while (running := [*_users(prefix)]) and time.monotonic() < ends:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for region in MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def close_regions() -> None:
    """Let nobody else read them: they hold the text of requests, and have mode 0644 whatever Triton's umask is."""
    for region in MEMORY.glob(f"{PREFIX}*"):
        with suppress(OSError):
            region.chmod(0o600)


def claim() -> IO[str]:
    """Lock this command's name, and clear up after commands that were killed along with their guardian.

    The lock is held until the file that is returned is closed, here and in the guardian.
    """
    for lock in MEMORY.glob("tritonserver-*.lock"):
        with suppress(OSError), lock.open("r+") as file:  # of another user, or in use
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(lock.stem)
    partial = MEMORY / f".{OWN}.lock"
    partial.touch(mode=0o600)
    own = partial.open("r+")
    fcntl.flock(own, fcntl.LOCK_EX)
    partial.rename(MEMORY / f"{OWN}.lock")
    return own


def clear() -> None:
    """Leave nothing of this command behind."""
    _clear(OWN)


def guard() -> None:
    """Start the guardian, a process that clears up however this one ends; it waits on a pipe that closes then."""
    told, held = os.pipe()
    if os.fork():
        os.close(told)
        return
    os.close(held)
    os.setsid()  # or what is sent to the group of the command would reach it, too
    os.read(told, 1)
    clear()
    os._exit(0)


def _clear(name: str) -> None:
    sweep(f"{name}-")
    (MEMORY / f"{name}.lock").unlink(missing_ok=True)


def _users(prefix: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        arguments = _command_line(int(path.name))
        if Path(arguments[0]).name in ("tritonserver", STUB) and any(prefix in argument for argument in arguments):
            yield int(path.name)


def _command_line(pid: int) -> list[str]:
    """At least one argument, "" for a process that has ended."""
    with suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).removesuffix("\0").split("\0")
    return [""]
