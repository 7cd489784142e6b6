"""The trainer's commands as tests run them: in this process, or in one of their own that can be killed."""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench.children import free_ports
from trainer import evaluate

Commands = Sequence[Sequence[object]]  # each the name of one and its flags

BAR = re.compile(r"\[\d\d:\d\d")  # the times of a progress bar, which comes where a machine takes seconds
FEW = ["--max_steps", "3", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--disable_tqdm", "true"]

LEARNING = ["--max_steps", "30", "--per_device_train_batch_size", "4", "--learning_rate", "5e-3", *FEW[4:]]

# A process that has imported everything already, also what a stage imports as it runs: what is killed is a stage, not
# the start of Python.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        __name__,
        *(f"trainer.{stage}" for stage in ("pretrain", "rank_sft", "score", "distill", "rerank")),
        *(f"transformers.models.{family}.modeling_{family}" for family in ("bert", "llama")),
        "torch.utils.tensorboard",
    ]
)

# Without it a host that joins later waits for an address which torchrun's first host tells in the first round only.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def run(module: Any, *flags: object) -> None:
    assert module.main([str(flag) for flag in flags]) == 0


def measured(checkpoint: Path, data: Path) -> float:
    """nDCG@10 as ``trainer.evaluate`` has it."""
    table = checkpoint.with_suffix(".json")
    run(evaluate, "--data", data, "--systems", checkpoint, "--output", table)
    (row,) = json.loads(table.read_text())
    return float(row["ndcg@10"])


def learnt(checkpoint: Path) -> bool:
    """Whether the loss went down, over a third of the steps at each end."""
    curve = [point["loss"] for point in json.loads((checkpoint / "training.json").read_text())["loss_curve"]]
    third = len(curve) // 3
    return bool(np.mean(curve[-third:]) < 0.9 * np.mean(curve[:third]))


def fails(module: Any, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The one line that the command prints before it ends with exit code 2."""
    assert module.main([str(flag) for flag in flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in said if not BAR.search(line)]
    assert line.startswith("error: ")
    return line


def started(
    stage: str, *flags: object, at: str | int = "", send: int = signal.SIGKILL, log: Path | None = None
) -> ForkServerProcess:
    """A process that sends itself the signal ``send`` as it opens, renames to or removes a path that ends in ``at``.

    Of a number, it does so before its ``at``-th change of what lies beside its output, the last of its flags. Its
    errors go to the ``log``.
    """
    process = SERVER.Process(target=_child, args=(stage, [str(flag) for flag in flags], at, send, log))
    process.start()
    return process


def finish(
    stage: str, *flags: object, at: str | int = "", send: int = signal.SIGKILL, log: Path | None = None
) -> int | None:
    process = started(stage, *flags, at=at, send=send, log=log)
    process.join(300)
    return process.exitcode


def status_of(pid: int | None) -> str:
    """The letter by which the kernel says what a process does, such as T for one that was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_two_processes(
    commands: Commands, log: Path, environment: Mapping[str, str] | None = None, stop_at: str = ""
) -> list[ForkServerProcess]:
    """Two processes with the environment that torchrun gives them, and more of it.

    Both run the commands one after the other. Their errors go to the log. One that opens a path which ends in
    ``stop_at`` gets SIGTERM.
    """
    port = free_ports("main")["main"]
    own = {**(environment or {}), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    flags = [[str(flag) for flag in command] for command in commands]
    processes = [
        SERVER.Process(target=_one_of_several, args=(flags, log, {**own, "RANK": rank, "LOCAL_RANK": rank}, stop_at))
        for rank in ("0", "1")
    ]
    for process in processes:
        process.start()
    return processes


def host(flags: Sequence[object], log: Path, port: int, lost_at: str = "") -> ForkServerProcess:
    """torchrun's agent on one of two hosts that distil together, with one process of its own; errors go to the log.

    The first to be started keeps the list of hosts, at the port. The host is lost, without a word, as its process makes
    a folder whose name ends with ``lost_at``.
    """
    return agent(["distill", *flags], log, port, hosts=2, processes=1, lost_at=lost_at)


def agent(
    command: Sequence[object], log: Path, port: int, hosts: int, processes: int, lost_at: str = ""
) -> ForkServerProcess:
    """torchrun's agent on one of the ``hosts``, with so many ``processes`` of its own, which run the command."""
    words = [str(word) for word in command]
    process = SERVER.Process(target=_agent, args=(words, log, port, hosts, processes, lost_at))
    process.start()
    return process


def _agent(command: list[str], log: Path, port: int, hosts: int, processes: int, lost_at: str) -> None:
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stderr.fileno())
    torch.set_num_threads(1)
    os.environ[OWN_STORE] = "1"
    config = LaunchConfig(
        min_nodes=hosts, max_nodes=hosts, nproc_per_node=processes, max_restarts=3, start_method="fork",
        local_addr="127.0.0.1", run_id="hosts", rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"keep_alive_interval": 1},
    )  # fmt: skip
    elastic_launch(config, _run_and_be_lost)(command, lost_at)
    os._exit(0)


def _run_and_be_lost(command: list[str], lost_at: str) -> None:
    def lose(event: str, arguments: tuple[Any, ...]) -> None:
        if lost_at and event == "os.mkdir" and str(arguments[0]).endswith(lost_at):
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(lose)
    stage, *flags = command
    if code := importlib.import_module(f"trainer.{stage}").main(flags):
        os._exit(code)


def exit_codes(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def _one_of_several(commands: list[list[str]], log: Path, environment: dict[str, str], stop_at: str) -> None:
    os.environ.update(environment)
    _strike(stop_at, signal.SIGTERM, log)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stderr.fileno())
    if "ACCELERATE_USE_FSDP" in environment:  # Accelerate lets FSDP follow from a kind of GPU: these CPUs are one
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *given: ("gloo", DistributedType.MULTI_GPU)
    torch.set_num_threads(1)
    for stage, *flags in commands:
        if code := importlib.import_module(f"trainer.{stage}").main(flags):
            os._exit(code)
    os._exit(0)


def _child(stage: str, flags: list[str], at: str | int, send: int, log: Path | None) -> None:
    _strike(at, send, Path(flags[-1]))
    if log:
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stderr.fileno())
    torch.set_num_threads(1)
    module = importlib.import_module(stage if "." in stage else f"trainer.{stage}")
    os._exit(module.main(flags))  # no cleanup, as after a kill


def _strike(at: str | int, send: int, output: Path) -> None:
    """Send this process a signal as ``started`` says it."""
    changes, strikes = itertools.count(1), itertools.count()

    def strike(event: str, arguments: tuple[Any, ...]) -> None:
        paths = {"open": arguments[:1], "os.rename": arguments[1:2], "shutil.rmtree": arguments[:1]}.get(event, ())
        if isinstance(at, str) and any(str(path).endswith(at) for path in paths) and not next(strikes):
            os.kill(os.getpid(), send)
        if isinstance(at, int) and _changes(event, arguments, output) and next(changes) == at:
            os.kill(os.getpid(), send)

    if at:
        sys.addaudithook(strike)


def _changes(event: str, arguments: tuple[Any, ...], output: Path) -> bool:
    """Whether an audited event changes something beside or in the output; removals inside a folder name no path."""
    if event == "open" and not (int(arguments[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return False
    inside = str(arguments[0]).startswith(str(output.parent)) if arguments else False
    return event in ("os.remove", "os.rmdir") or (
        event in ("open", "os.rename", "os.mkdir", "shutil.rmtree") and inside
    )
