"""Training speed side by side with the usual choices, as a table of ratios, a JSON of all numbers and a plot.

    python -m bench.training --data dl20.jsonl
    python -m bench.training --data dl20.jsonl --parts student --student bench/training/ettin-17m.json

Each system trains in a process of its own, the peers in environments of their own. Each is measured once a round, and
every second round runs in reverse order. Every system first tries its shapes, and the fastest counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from bench.arguments import SharedArguments
from bench.environments import interpreter
from bench.folders import MARKER, own
from bench.report import command_of, described, machine, show, write
from bench.training import growth, material, table
from bench.training.rounds import System, Task, compare
from bench.training.tasks import OURS, WORKERS, Load, pretraining_task, rank_task, student_task
from trainer.checkpoints.load import load_encoder
from trainer.command import command, parse
from trainer.data.records import DataError

REQUIREMENTS = Path(__file__).with_name("requirements")
PARTS = ("student", "decoder", "growth")
PEERS = ("sentence-transformers", "transformers", "trl")
PRECISIONS = ("fp32", "bf16")


@dataclass
class TrainingArguments(SharedArguments):
    """The settings of a comparison."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Some of {', '.join(PARTS)}."})
    peers: list[str] = field(default_factory=lambda: list(PEERS), metadata={"help": f"Some of {', '.join(PEERS)}."})
    precisions: list[str] = field(
        default_factory=lambda: list(PRECISIONS), metadata={"help": "Precisions of the student: fp32, bf16."}
    )
    documents: int = field(default=16, metadata={"help": "Documents of a group."})
    queries: int = field(default=4, metadata={"help": "Groups of a step."})
    steps: int = field(default=3, metadata={"help": "Steps that count, after one that does not."})
    seed: int = field(default=0, metadata={"help": "Seed of the drawn groups and targets."})
    work_dir: str = field(default="runs/bench-training", metadata={"help": "Checkpoints and data made for the bench."})
    output: str = field(default="bench/results/training.json", metadata={"help": "JSON of all numbers."})
    plot: str = field(default="docs/training-growth.png", metadata={"help": "Picture of how our cost grows."})

    def __post_init__(self) -> None:
        self.require(parts=PARTS, peers=PEERS, precisions=PRECISIONS)
        if min(self.queries, self.steps, self.rounds, self.threads) < 1 or self.documents < 2:
            raise DataError("--queries, --steps, --rounds and --threads must be at least 1, --documents 2")


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, TrainingArguments)
    work = Path(arguments.work_dir).absolute()
    own(work, "--work_dir", MARKER)
    data = arguments.data or material.generated_collection(work / "collection")
    if arguments.student and arguments.student.endswith(".json"):
        arguments.student = material.drawn(Path(arguments.student), data, work / "drawn")
    groups = material.read_lists(data, arguments.documents, arguments.seed)
    load = Load(groups, arguments.queries, arguments.steps, arguments.rounds)
    tasks, lengths = _tasks(arguments, load, data, work)
    rows = _compared(tasks, arguments.threads)
    points = _growth(arguments, work)
    setting = machine(arguments.threads)
    result = {
        "command": command_of("bench.training", argv),
        "machine": setting,
        "data": {"files": [Path(path).name for path in data], "groups": len(groups), **lengths},
        "rows": rows,
        "growth": points,
    }
    write(Path(arguments.output), result)
    if rows:
        show(table.table(rows, f"{described(setting)}; medians over rounds with the lowest and the highest"))
    for point in points:
        shape = f"{point.documents:4d} documents a group, {point.mean_tokens:5.0f} tokens a pair"
        print(f"{shape}: {point.tokens_per_second.median:7,.0f} tokens/s, {point.pairs_per_second.median:6.1f} pairs/s")


def _tasks(
    arguments: TrainingArguments, load: Load, data: Sequence[str], work: Path
) -> tuple[list[Task], dict[str, material.Lengths]]:
    """The tasks that are asked for, and the lengths of the pairs by each of their tokenizers."""

    def peer(name: str) -> Path | None:
        environments = Path(arguments.environments).absolute()
        return interpreter(REQUIREMENTS / f"{name}.txt", environments) if name in arguments.peers else None

    tasks, lengths = list[Task](), dict[str, material.Lengths]()
    if "student" in arguments.parts:
        checkpoint = material.student(arguments.student, work / "student")
        if {"sentence-transformers", "transformers"} & {*arguments.peers}:
            material.refuse_own_head(checkpoint)
        lengths["student_tokens"] = material.lengths(load.groups, load_encoder(checkpoint)[0])
        lists, flat = peer("sentence-transformers"), peer("transformers")
        tasks += [student_task(checkpoint, load, precision, lists, flat) for precision in arguments.precisions]
    if "decoder" in arguments.parts and (trl := peer("trl")):
        checkpoint, scorer = material.decoder(data, work / "decoder")
        pairs = lengths["decoder_tokens"] = material.lengths(load.groups, load_encoder(checkpoint)[0])
        tasks += [pretraining_task(checkpoint, load, pairs, trl), rank_task(scorer, load, trl)]
    return tasks, lengths


def _compared(tasks: Sequence[Task], threads: int) -> list[table.Row]:
    rows: list[table.Row] = []
    with tqdm(total=sum(task.measurements() for task in tasks), unit="run", disable=not tasks) as bar:
        for task in tasks:
            bar.set_description(f"{task.name}, {task.job.precision}")
            rows += table.rows(task.name, task.job.precision, compare(task, threads, bar.update))
    return rows


def _growth(arguments: TrainingArguments, work: Path) -> list[growth.Point]:
    if "growth" not in arguments.parts:
        return []
    longest = max(growth.MEANS)
    encoding = {"row_length": longest, "max_pair_tokens": longest, "slots_per_row": longest // 16}
    checkpoint = material.student(arguments.student, work / "student-long", **encoding)
    ours = System("ours", OURS, (f"{WORKERS}.ours", "distil"), ())
    with tqdm(total=len(growth.SHAPES), unit="run", desc="growth") as bar:
        points = growth.measure(ours, checkpoint, arguments.steps, arguments.threads, bar.update)
    title = f"{machine(arguments.threads)['cpu']}, {arguments.threads} threads, float32"
    growth.draw(points, Path(arguments.plot), title)
    return points


if __name__ == "__main__":
    sys.exit(main())
