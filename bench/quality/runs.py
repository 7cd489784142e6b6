"""Tasks, one after the other: each in a process of its own, with its own log, and not again once it has ended."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq

from bench.environments import ROOT, last_line
from bench.quality.cells import STEPS, Filled, Task
from bench.quality.leaks import Leak, leaks_against
from bench.quality.sources import Sources, asked, filtered
from bench.quality.study import PLACEHOLDER, StudyError
from client.command import say
from client.files import appears_whole, move
from trainer.data.records import DataError

RECORD, LOG = "step.json", "log.txt"  # beside the output of a task
LIBRARIES = ("disranker", "torch", "transformers", "tokenizers", "peft", "numpy", "pyarrow", "ir_measures")
# Imported once, by the process that the tasks are forked from.
PRELOADED = [f"trainer.{name}" for name in ("init", "rank_sft", "score", "distill", "rerank", "pretrain")]
PRELOADED += ["torch.utils.tensorboard"]  # which a stage imports as it begins
STOP_S = 60  # in which a stage that is stopped writes a checkpoint


@dataclass(frozen=True)
class Outcome:
    """A task that has ended, or the attempts so far. Seconds are those of all attempts."""

    identity: str  # changes with the command and with all that it reads
    command: str
    reads: dict[str, str]  # identities
    versions: dict[str, str]
    seconds: float = 0.0
    attempts: int = 0
    ended: bool = False
    pairs: int | None = None  # in its output, if that holds pairs
    leaks: tuple[Leak, ...] = ()


class Runner:
    """Runs tasks below ``root``. ``tests`` are the data that what a task writes is tested on, in the end."""

    def __init__(self, root: Path, sources: Sources, tests: Mapping[Task, Sequence[str]], leaks: str) -> None:
        self._root, self._sources, self._tests, self._leaks = root, sources, tests, leaks
        self.versions = versions()
        self._identities: dict[Task, str] = {}
        self.outcomes: dict[Task, Outcome] = {}
        self.failures: dict[Task, str] = {}

    def run(self, task: Task) -> None:
        """Run a task whose needs were run, unless it has ended or one of them failed."""
        if failed := [self.failures[need] for need in task.needs if need in self.failures]:
            self.failures[task] = failed[0]
            return
        folder = self._folder(task)
        wanted = self._wanted(task)
        before = _read(folder)
        if before is not None and before.identity == wanted.identity:
            self.outcomes[task] = before
            return
        if before is not None:
            names = [name for name, mark in wanted.reads.items() if before.reads.get(name) != mark]
            what = "its command" if before.command != wanted.command else f"what it reads ({', '.join(names)})"
            say(f"{task.name}: {what} changed: runs again")
            shutil.rmtree(folder)
        reason = self._attempt(task, wanted)
        if reason:
            self.failures[task] = f"{task.name}: {reason} (all in {self._partial(task) / LOG})"

    @cached_property
    def _server(self) -> ForkServerContext:
        """Ready to fork: no task's seconds have the imports in them."""
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        first = server.Process()
        first.start()
        first.join()
        return server

    def path(self, filled: Filled, out: str = "") -> str:
        """The text with paths in it; ``out`` is that of the task's own output."""

        def of(name: str) -> str:
            if name == "out":
                return out
            return str(self._root / name) if name.startswith(STEPS) else self._sources[name].path

        return PLACEHOLDER.sub(lambda match: of(match[1]), filled.text)

    def _folder(self, task: Task) -> Path:
        return self._root / STEPS / task.name

    def _partial(self, task: Task) -> Path:
        folder = self._folder(task)
        return folder.with_name(f"{folder.name}.partial")

    def _argv(self, task: Task) -> list[str]:
        out = self._partial(task) / Path(task.output).name.partition(".")[0]
        return [self.path(word, str(out)) for word in task.words]

    def _wanted(self, task: Task) -> Outcome:
        """The outcome that there would be, as far as it is known before."""
        reads = {name: self._sources[name].identity for name in task.sources}
        reads |= {need.name: self._identities[need] for need in task.needs}
        if task.output.endswith(".jsonl"):  # queries that are generated must not be those of a test
            reads |= {f"test {name}": self._sources[name].identity for name in self._tests[task]}
        texts = [task.module, *(word.text for word in task.words), *(f"{name} {mark}" for name, mark in reads.items())]
        mark = self._identities[task] = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        command = shlex.join(["python", "-m", task.module, *self._argv(task)])
        return Outcome(mark, command, reads, self.versions)

    def _attempt(self, task: Task, wanted: Outcome) -> str:
        """Run the command, from where an earlier attempt was stopped; returns why it failed, if it did."""
        partial = self._partial(task)
        before = _read(partial)
        if before is None or before.identity != wanted.identity:
            shutil.rmtree(partial, ignore_errors=True)
            before = wanted
        output = partial / Path(task.output).name
        reason = ""
        if not before.ended:  # else the runner was killed as it moved the output
            before, reason = self._again(task, before, output)
        if not reason:
            self.outcomes[task] = before
            move(partial, self._folder(task))
        return reason

    def _again(self, task: Task, before: Outcome, output: Path) -> tuple[Outcome, str]:
        """The outcome after another attempt, and why that failed, if it did."""
        if output.exists():  # the runner was killed before it knew that the command ended
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        partial, now = output.parent, replace(before, versions=self.versions, attempts=before.attempts + 1)
        _write(partial, now)
        process = self._server.Process(target=_child, args=(task.module, self._argv(task), str(partial / LOG)))
        began = time.perf_counter()
        try:
            reason = ended(process, partial / LOG)
        finally:
            now = replace(now, seconds=now.seconds + time.perf_counter() - began)
            _write(partial, now)
        if not reason and not output.exists():
            reason = f"the command ended well and wrote no {output.name}"
        if not reason:
            try:
                if task.output.endswith(".jsonl"):
                    now, reason = self._checked(task, now, output)
                now = replace(now, ended=not reason, pairs=pairs_in(output))
            except (DataError, StudyError) as error:  # of its output; the other cells go on
                reason = str(error)
        if not reason:
            _write(partial, now)
        return now, reason

    def _checked(self, task: Task, now: Outcome, output: Path) -> tuple[Outcome, str]:
        """The outcome with the leaks of generated queries, which are dropped if the study says so."""
        found, leaking = leaks_against(task.name, str(output), self._tests[task], self._sources)
        now = replace(now, leaks=tuple(found))
        if leaking and self._leaks == "refuse":
            return now, str(next(each for each in found if each.queries))
        if leaking and self._leaks == "drop":
            filtered(str(output), output, lambda query_id: query_id not in leaking)
        return now, ""


def ended(process: BaseProcess, log: Path) -> str:
    """Run the process to its end; returns why it failed, with the last line of the log, if it did."""
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():  # the runner is stopped
            process.terminate()
            process.join(STOP_S)
            process.kill()
    if not (code := process.exitcode):
        return ""
    what = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{what}: {last_line(log.read_text(encoding='utf-8', errors='replace'))}"


def _child(module: str, argv: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    print(f"$ {shlex.join(['python', '-m', module, *argv])}", flush=True)
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):  # a package's command
        found = importlib.import_module(f"{module}.__main__")
    sys.exit(found.main(argv))


def _end_with_the_runner() -> None:
    """Where the runner is killed, the step ends as if it were stopped: the next run must not meet it."""
    if runner := multiprocessing.parent_process():
        runner.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _read(folder: Path) -> Outcome | None:
    path = folder / RECORD
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**{**record, "leaks": tuple(Leak(**each) for each in record["leaks"])})


def _write(folder: Path, outcome: Outcome) -> None:
    with appears_whole(folder / RECORD) as partial:
        partial.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")


def pairs_in(output: Path) -> int | None:
    """Query-document pairs in a file of scores or records."""
    if output.suffix == ".parquet":
        return int(pq.read_metadata(output).num_rows)
    return sum(len(each.documents) for each in asked(str(output))) or None


def versions() -> dict[str, str]:
    """The commit of the project, "" outside of a repository, and the libraries that numbers depend on."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit, **{name: version(name) for name in LIBRARIES}}
