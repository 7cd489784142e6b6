"""From a query log to a ranked list: every stage in order, one table, one ranking.

    python -m examples.demo --output_dir runs/demo

Each stage is the command that is printed before it. Most run in this process, which saves their imports.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import build_engines
from bench.children import TRITON, healthy, started
from bench.folders import own
from client import rank
from client.errors import DisRankerError
from examples import collection
from trainer import distill, evaluate, init, prepare, pretrain, rank_sft, score
from trainer.checkpoints.record import RECORD_FILE
from trainer.command import command, parse
from trainer.data.records import read_groups

EXAMPLES = Path(__file__).parent
THREADS = max(1, len(os.sched_getaffinity(0)) // 2)  # of each of the two processes that train
HTTP_PORT = 8000  # Triton's own
SHOWN = 12  # place of a test query on which the student does about as well as on all
MARKER = ".made-by-the-demo"  # in a folder that the demo may remove


@dataclass
class DemoArguments:
    """The settings of the demo."""

    output_dir: str = field(
        default="runs/demo", metadata={"help": "Made anew: a folder that an earlier demo made is removed."}
    )
    model_repository: str = field(default="model_repository", metadata={"help": "Where the engine is installed."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path of an LLM, instead of a tiny one."})
    student: str | None = field(default=None, metadata={"help": "Hub id or path of an encoder, instead of a tiny one."})
    seed: int = field(default=0, metadata={"help": "Seed of the collection, the weights and the order of training."})
    size: float = field(default=1.0, metadata={"help": "Queries of the collection, as a share of the usual number."})
    cpt_epochs: float = field(default=12.0, metadata={"help": "Epochs over the clicked documents of the log."})
    sft_epochs: float = field(default=12.0, metadata={"help": "Epochs over the judged queries, for the teacher."})
    student_steps: int = field(default=1200, metadata={"help": "Steps of both students."})


class StageFailedError(DisRankerError):
    """A stage ended with an exit code other than 0 and printed why."""

    exit_code = 1
    label = ""


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, DemoArguments)
    began = time.perf_counter()
    root = Path(arguments.output_dir)
    make_anew(root)
    torch.set_num_threads(THREADS)
    stage(collection, "--output_dir", root / "collection", "--seed", arguments.seed, "--size", arguments.size)
    # The judgments are splits, and every query of the log trains.
    stage(
        prepare, "--mapping", "pages", "--input", root / "collection/raw", "--output_dir", root / "data",
        "--dev_share", 0, "--test_share", 0,
    )  # fmt: skip
    first_checkpoints(arguments, root)
    train(arguments, root)
    install(arguments, root)
    compare(root)
    rank_through_server(arguments, root)
    print(f"\n{time.perf_counter() - began:.0f} s in all; the table is in {root / 'table.json'}")
    print(f"with a page and the rerank APIs over HTTP: python -m engines.serve {root / 'student'}")


def make_anew(root: Path) -> None:
    """An empty folder that the demo may remove. Raises DisRankerError for one that is not empty and not the demo's."""
    own(root, "--output_dir", MARKER)
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    own(root, "--output_dir", MARKER)


def first_checkpoints(arguments: DemoArguments, root: Path) -> None:
    """Pretrained ones with the usual limits, or fresh ones for texts as short as the collection's."""
    texts = ["--data", root / "data/pool.jsonl"]
    short = ["--max_query_tokens", 24, "--max_pair_tokens", 96]
    for name, pretrained, config, limits in (
        ("llm", arguments.teacher, EXAMPLES / "teacher.json", [*short, "--row_length", 128]),
        ("bert", arguments.student, EXAMPLES / "student.json", short),
    ):
        source = ["--pretrained", pretrained] if pretrained else ["--config", config, *texts, *limits]
        stage(init, *source, "--seed", arguments.seed, "--output_dir", root / name)


def train(arguments: DemoArguments, root: Path) -> None:
    """A teacher by CPT on the log's clicks and rank-SFT on the judged queries, and a student that learns its scores.

    Beside them one of each without its first stage, the LLM for as long as the teacher's two stages took.
    """
    log, judged = root / "data/log.jsonl", root / "data/judged.jsonl"
    # Adapters keep what the clicks taught, where full training learns 200 queries by heart. Untaught weights must move.
    taught = ["--data", judged, "--lora_rank", 16, *step(arguments, queries=4, learning_rate=2e-3)]
    untaught = ["--data", judged, *step(arguments, queries=4, learning_rate=4e-4)]
    student = ["--model", root / "bert", "--max_steps", arguments.student_steps,
               *step(arguments, queries=8, learning_rate=1.5e-3)]  # fmt: skip
    with beside(rank_sft, *student, "--data", judged, "--output_dir", root / "student-on-labels"):
        stage(
            pretrain, "--model", root / "llm", "--data", log, "--output_dir", root / "cpt",
            "--num_train_epochs", arguments.cpt_epochs, *step(arguments, queries=16, learning_rate=2e-3),
        )  # fmt: skip
        stage(
            rank_sft, "--model", root / "cpt", "--num_train_epochs", arguments.sft_epochs, *taught,
            "--output_dir", root / "teacher",
        )  # fmt: skip
    cpt, sft = training_seconds(root / "cpt"), training_seconds(root / "teacher")
    epochs, alone = f"{arguments.sft_epochs * (cpt + sft) / sft:.1f}", root / "teacher-without-cpt"
    with beside(rank_sft, "--model", root / "llm", "--num_train_epochs", epochs, *untaught, "--output_dir", alone):
        pool, scores = ["--data", root / "data/pool.jsonl"], root / "teacher_scores.parquet"
        stage(score, "--model", root / "teacher", *pool, "--output", scores)
        stage(distill, *student, *pool, "--scores", scores, "--output_dir", root / "student")


def install(arguments: DemoArguments, root: Path) -> None:
    stage(
        build_engines, "--checkpoint", root / "student", "--data", root / "data/dev.jsonl",
        "--engine", "openvino", "--precision", "fp32", "--model_repository", arguments.model_repository,
    )  # fmt: skip


def compare(root: Path) -> None:
    systems = ["random", "bm25", "teacher-without-cpt", "teacher", "student-on-labels", "student"]
    named = [name if name in ("random", "bm25") else f"{name}={root / name}" for name in systems]
    stage(
        evaluate, "--data", root / "data/test.jsonl", "--systems", *named, "--measures", "nDCG@10",
        "--baseline", "teacher-without-cpt", "--output", root / "table.json",
    )  # fmt: skip
    ndcg = {row["system"]: row["ndcg@10"] for row in json.loads((root / "table.json").read_text(encoding="utf-8"))}
    kept = (ndcg["student"] - ndcg["random"]) / (ndcg["teacher"] - ndcg["random"])
    print(f"The student keeps {kept:.0%} of what the teacher gains over random order.")


def rank_through_server(arguments: DemoArguments, root: Path) -> None:
    """Start the server, rank the candidates of a test query through the client, stop the server. The ids show the
    labels, 0 to 3."""
    group = read_groups(root / "collection/test.jsonl")[SHOWN]
    documents = root / "documents.jsonl"
    fields = [
        {"doc_id": f"{each.doc_id}-label{each.label:g}", "title": each.title, "summary": each.summary}
        for each in group.documents
    ]
    documents.write_text("".join(json.dumps(each) + "\n" for each in fields), encoding="utf-8")
    flags = ["--model-repository", str(arguments.model_repository), "--model-config-name", "cpu"]
    print(f"\n$ {shlex.join(['python', *TRITON[1:], *flags])} &", flush=True)
    with started([*TRITON, *flags], root / "server.log") as server:
        try:
            server.wait_until(lambda: healthy(HTTP_PORT))
        except OSError as error:
            raise StageFailedError(str(error)) from error
        stage(rank, "--query", group.query, documents, "--format", "table", "--top_k", 5)


def step(arguments: DemoArguments, queries: int, learning_rate: float) -> list[object]:
    size = ["--per_device_train_batch_size", queries, "--learning_rate", learning_rate]
    return [*size, "--adam_beta2", 0.98, "--seed", arguments.seed]


def training_seconds(checkpoint: Path) -> float:
    record = json.loads((checkpoint / RECORD_FILE).read_text(encoding="utf-8"))
    return float(record["metrics"]["train_runtime"])


def stage(module: Any, *flags: object) -> None:
    """Run a command of ours in this process."""
    argv = [str(flag) for flag in flags]
    print(f"\n$ {as_typed(module, argv)}", flush=True)
    if code := module.main(argv):
        raise StageFailedError(f"{module.__name__} ended with exit code {code}")


@contextmanager
def beside(module: Any, *flags: object) -> Iterator[None]:
    """Run a command of ours in a process of its own beside the body. The block ends when both have ended.

    Its log is named by the last flag, the folder of its output.

    Two small models that train on half of the cores each are faster than one after the other. An accelerator is not
    divided like this: there the command runs first.
    """
    if torch.accelerator.is_available():
        stage(module, *flags)
        yield
        return
    argv = [str(flag) for flag in flags]
    log = Path(f"{argv[-1]}.log")
    print(f"\n$ {as_typed(module, argv)} > {log} 2>&1 &", flush=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module.__name__, *argv],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        )  # fmt: skip
        try:
            yield
            print(f"\n$ wait  # for {log}", flush=True)
            if code := process.wait():
                raise StageFailedError(f"{module.__name__} ended with exit code {code}: see {log}")
        finally:
            process.kill()
            process.wait()


def as_typed(module: Any, argv: Sequence[str]) -> str:
    scripts = {build_engines: "build_engines.py", rank: "client/rank.py"}
    return f"python {scripts.get(module, f'-m {module.__name__}')} {shlex.join(argv)}"


if __name__ == "__main__":
    sys.exit(main())
