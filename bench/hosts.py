"""Train a student on two hosts, which are network namespaces of this machine, and lose one of them on the way.

    sudo .venv/bin/python -m bench.hosts --model runs/demo/bert --data runs/demo/data/pool.jsonl \\
        --scores runs/demo/teacher_scores.parquet --output_dir runs/hosts

Each host has an address and a network of its own, and runs torchrun with one process. Once there is a checkpoint the
second host is lost: with --cut its network goes first, so that the other one is not told. Five seconds later it runs
the same command again. The loss curve must be that of one process with as many queries a step, else the exit code is 1.
It needs root and Linux.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.children import Child, StartError, started
from client.command import command
from trainer.command import FlagError, parse

ADDRESSES, PORT = ("10.77.0.1", "10.77.0.2"), 29500
NAMES = Path("/etc/netns")  # files that ip shows to what it runs in a namespace, in place of those of /etc
AWAY_S, PATIENCE_S = 5.0, 1800.0
SAME = 1e-5  # relative: sums of float32 in another order
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"  # docs/scale.md
STILL = ["--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1"]


@dataclass
class HostsArguments:
    """The training, and how a host is lost."""

    model: str = field(metadata={"help": "A student without dropout: each process would draw its own."})
    data: str = field(metadata={"help": "As for trainer.distill."})
    scores: str = field(metadata={"help": "As for trainer.distill."})
    output_dir: str = field(metadata={"help": "A new folder for both students and the logs."})
    queries: int = field(default=8, metadata={"help": "Of a step; even, and the queries of the data in whole steps."})
    max_steps: int = field(default=24, metadata={"help": "Of each run."})
    save_steps: int = field(
        default=8, metadata={"help": "Steps between checkpoints; the host is lost after the first."}
    )
    cut: bool = field(default=False, metadata={"help": "Cut the network of the host before it is lost."})


class Host:
    """A network namespace with one address, in which processes run. Raises StartError where there can be none."""

    def __init__(self, number: int) -> None:
        self.name, self.link, self.address = f"disranker{number}", f"veth{number}", ADDRESSES[number]
        self._names = NAMES / self.name
        with ExitStack() as undo:
            _ip("netns", "add", self.name)
            undo.callback(_ip, "netns", "delete", self.name)
            self._names.mkdir(parents=True)
            undo.callback(shutil.rmtree, self._names)
            lines = [f"{address} host{number}\n" for number, address in enumerate(ADDRESSES)]
            (self._names / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines), encoding="utf-8")
            self._undo = undo.pop_all()

    def connect(self) -> None:
        """Give it its address, once it has its link."""
        _ip("-netns", self.name, "addr", "add", f"{self.address}/24", "dev", self.link)
        for link in ("lo", self.link):
            _ip("-netns", self.name, "link", "set", link, "up")

    def torchrun(self, *flags: str) -> list[str]:
        """A command that runs in it: torchrun's agent, which starts the process of the trainer."""
        first = self.address == ADDRESSES[0]
        where = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "3", "--rdzv_id", "hosts",
                 "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:{PORT}",
                 "--rdzv_conf", f"is_host={int(first)}", "--local_addr", self.address]  # fmt: skip
        torchrun = str(Path(sys.executable).with_name("torchrun"))
        inside = ["ip", "netns", "exec", self.name, "env", f"GLOO_SOCKET_IFNAME={self.link}", OWN_STORE,
                  "OMP_NUM_THREADS=1"]  # fmt: skip
        return [*inside, torchrun, *where, "-m", "trainer.distill", *flags]

    def lose(self, cut: bool) -> None:
        """Kill all of its processes at once."""
        if cut:
            _ip("-netns", self.name, "link", "set", self.link, "down")
        for pid in _ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def come_back(self) -> None:
        _ip("-netns", self.name, "link", "set", self.link, "up")

    def remove(self) -> None:
        self.lose(cut=False)
        self._undo.close()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"ip {' '.join(arguments)}: {done.stderr.strip()}: network namespaces need root and Linux")
    return done.stdout


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    with ExitStack() as stack:
        first = Host(0)
        stack.callback(first.remove)
        second = Host(1)
        stack.callback(second.remove)
        hosts = first, second
        one, two = ((host.link, "netns", host.name) for host in hosts)
        _ip("link", "add", *one, "type", "veth", "peer", *two)
        for host in hosts:
            host.connect()
        yield hosts


@command
def main(argv: Sequence[str] | None = None) -> int:
    (arguments,) = parse(argv, HostsArguments)
    if arguments.queries % 2 or arguments.save_steps >= arguments.max_steps:
        raise FlagError("--queries must be even, and --save_steps below --max_steps")
    output = Path(arguments.output_dir)
    output.mkdir(parents=True)
    with started(
        [sys.executable, "-m", "trainer.distill", *_flags(arguments, output / "one", 1)], output / "one.log"
    ) as one:
        _until(lambda: one.process.poll() is not None, [one])
    seconds = _lost_and_back(arguments, output)
    alone, together = (_curve(output / name) for name in ("one", "two"))
    off = apart(alone, together)
    print(f"two hosts: {len(together)} steps; losses differ from one process's by {off:.1g} at most (relative)")
    how = "cut off" if arguments.cut else "killed"
    print(f"a host {how}, and back {AWAY_S:g} s later: {seconds:.0f} s from its loss until there was a new checkpoint")
    return int(not off <= SAME)


def apart(expected: Sequence[float], losses: Sequence[float]) -> float:
    """The largest relative difference of two loss curves; NaN if one has another length, or a NaN."""
    if len(losses) != len(expected):
        return math.nan
    return float(np.max(np.abs(np.divide(losses, expected) - 1)))


def _flags(arguments: HostsArguments, output: Path, processes: int) -> list[str]:
    given = {"model": arguments.model, "data": arguments.data, "scores": arguments.scores, "output_dir": output,
             "per_device_train_batch_size": arguments.queries // processes, "max_steps": arguments.max_steps,
             "save_steps": arguments.save_steps}  # fmt: skip
    return [*STILL, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def _lost_and_back(arguments: HostsArguments, output: Path) -> float:
    """Seconds from the loss of the second host until there is a checkpoint beyond those before."""
    run = output / ".two.run"
    with two_hosts() as hosts, ExitStack() as stack:
        commands = [host.torchrun(*_flags(arguments, output / "two", 2)) for host in hosts]
        children = [
            stack.enter_context(started(command, output / f"two-{number}.log"))
            for number, command in enumerate(commands)
        ]
        _until(lambda: [*run.glob("checkpoint-*/whole.json")], children)
        hosts[1].lose(arguments.cut)
        before, lost = {*run.glob("checkpoint-*/whole.json")}, time.monotonic()
        time.sleep(AWAY_S)
        hosts[1].come_back()
        children[1] = stack.enter_context(started(commands[1], output / "two-1-again.log"))
        _until(lambda: {*run.glob("checkpoint-*/whole.json")} - before or (output / "two").exists(), children)
        seconds = time.monotonic() - lost
        _until(lambda: all(child.process.poll() is not None for child in children), children)
    return seconds


def _until(holds: Callable[[], object], children: Sequence[Child]) -> None:
    """Wait until it does. Raises StartError with the log of a process that failed, or after PATIENCE_S."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        for child in children:
            if child.process.poll() or time.monotonic() > ends:
                raise StartError(f"{child.log}: the process failed, or took longer than {PATIENCE_S:g} s: see there")
        time.sleep(0.05)


def _curve(checkpoint: Path) -> list[float]:
    found = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["loss_curve"]
    return [float(point["loss"]) for point in found]


if __name__ == "__main__":
    sys.exit(main())
