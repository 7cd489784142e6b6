"""From a query log to a ranked list: every stage in order, one table, one ranking.

    python -m examples.demo --output_dir runs/demo

Each stage is the command that is printed before it; it runs in this process only to save imports.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType

import build_engines
from client import rank
from client.rank import RankingClient
from examples import collection
from trainer import distill, evaluate, init, pretrain, rank_sft, score
from trainer.data import read_groups

EXAMPLES = Path(__file__).parent


@dataclass
class DemoArguments:
    """Where the demo leaves its files, and what it is made of."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Made anew."})
    model_repository: str = field(default="model_repository", metadata={"help": "Where the engine is installed."})
    teacher: str | None = field(default=None, metadata={"help": "Hub id or path of an LLM, instead of a tiny one."})
    student: str | None = field(default=None, metadata={"help": "Hub id or path of an encoder, instead of a tiny one."})
    seed: int = field(default=0, metadata={"help": "Of the collection, the weights and the order of training."})
    cpt_epochs: float = field(default=14.0, metadata={"help": "Epochs over the clicked documents of the log."})
    sft_epochs: float = field(default=4.0, metadata={"help": "Epochs over the judged queries, for the teacher."})
    student_steps: int = field(default=600, metadata={"help": "Steps of both students."})


class StageFailedError(RuntimeError):
    """A stage ended with an exit code other than 0; it has said why."""


def main(argv: Sequence[str] | None = None) -> int:
    (arguments,) = HfArgumentParser(DataClassType(DemoArguments)).parse_args_into_dataclasses(args=argv)
    started = time.perf_counter()
    root = Path(arguments.output_dir)
    shutil.rmtree(root, ignore_errors=True)
    try:
        stage(collection, "--output_dir", root / "collection", "--seed", arguments.seed)
        train_teachers(arguments, root)
        train_students(arguments, root)
        install(arguments, root)
        compare(root)
        rank_through_server(arguments, root)
    except StageFailedError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{time.perf_counter() - started:.0f} s in all; the table is in {root / 'table.json'}")
    return 0


def train_teachers(arguments: DemoArguments, root: Path) -> None:
    """CPT and then rank-SFT; and rank-SFT alone, for as long as the two took."""
    train, log = root / "collection/train.jsonl", root / "collection/log.jsonl"
    first_checkpoint(arguments, root / "llm", arguments.teacher, EXAMPLES / "teacher.json", "--row_length", 128)
    cpt = stage(
        pretrain, "--model", root / "llm", "--data", log, "--output_dir", root / "cpt",
        "--num_train_epochs", arguments.cpt_epochs,
        *step(arguments, queries=16, learning_rate=5e-3),
    )  # fmt: skip
    ranking = ["--data", train, *step(arguments, queries=4, learning_rate=1e-3)]
    epochs = arguments.sft_epochs
    flags = ["--num_train_epochs", epochs, "--output_dir", root / "teacher"]
    sft = stage(rank_sft, "--model", root / "cpt", *ranking, *flags)
    flags = ["--num_train_epochs", f"{epochs * (cpt + sft) / sft:.1f}", "--output_dir", root / "teacher-without-cpt"]
    stage(rank_sft, "--model", root / "llm", *ranking, *flags)


def train_students(arguments: DemoArguments, root: Path) -> None:
    """One encoder, twice the same number of steps: on the labels alone, and on the teacher's scores."""
    train, log = root / "collection/train.jsonl", root / "collection/log.jsonl"
    first_checkpoint(arguments, root / "bert", arguments.student, EXAMPLES / "student.json")
    same = ["--model", root / "bert", "--max_steps", arguments.student_steps]
    same += step(arguments, queries=8, learning_rate=2e-3)
    stage(rank_sft, *same, "--data", train, "--output_dir", root / "student-on-labels")
    scores = root / "teacher_scores.parquet"
    stage(score, "--model", root / "teacher", "--data", log, train, "--output", scores)
    stage(distill, *same, "--data", log, train, "--scores", scores, "--output_dir", root / "student")


def install(arguments: DemoArguments, root: Path) -> None:
    stage(
        build_engines, "--checkpoint", root / "student", "--data", root / "collection/dev.jsonl",
        "--engine", "openvino", "--precision", "fp32", "--model_repository", arguments.model_repository,
    )  # fmt: skip


def compare(root: Path) -> None:
    systems = ["random", "bm25", "teacher-without-cpt", "teacher", "student-on-labels", "student"]
    named = [name if name in ("random", "bm25") else f"{name}={root / name}" for name in systems]
    stage(
        evaluate, "--data", root / "collection/test.jsonl", "--systems", *named, "--measures", "nDCG@10",
        "--baseline", "teacher-without-cpt", "--output", root / "table.json",
    )  # fmt: skip
    ndcg = {row["system"]: row["ndcg@10"] for row in json.loads((root / "table.json").read_text(encoding="utf-8"))}
    kept = (ndcg["student"] - ndcg["random"]) / (ndcg["teacher"] - ndcg["random"])
    print(f"The student keeps {kept:.0%} of what the teacher gains over random order.")


def rank_through_server(arguments: DemoArguments, root: Path) -> None:
    """Start the server, rank the candidates of the first test query through the client, stop the server."""
    group = read_groups(root / "collection/test.jsonl")[0]
    documents = root / "documents.jsonl"
    fields = [{"doc_id": each.doc_id, "title": each.title, "summary": each.summary} for each in group.documents]
    documents.write_text("".join(json.dumps(each) + "\n" for each in fields), encoding="utf-8")
    command = ["tritonserver", "--model-repository", str(arguments.model_repository), "--model-config-name", "cpu"]
    print(f"\n$ {shlex.join(command)} &", flush=True)
    log = root / "server.log"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            [Path(sys.executable).with_name(command[0]), *command[1:]], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until_ready(server, log)
            stage(rank, "--query", group.query, documents, "--format", "table", "--top_k", 5)
        finally:
            server.terminate()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    with RankingClient() as client:
        for _ in range(240):
            if server.poll() is not None:
                raise StageFailedError(f"the server ended with exit code {server.returncode}: see {log}")
            if client.is_ready():
                return
            time.sleep(0.5)
    raise StageFailedError(f"the server is not ready after two minutes: see {log}")


def first_checkpoint(
    arguments: DemoArguments, output_dir: Path, pretrained: str | None, config: Path, *limits: object
) -> None:
    """A pretrained one with the usual limits, or a fresh one for texts as short as the collection's."""
    texts = [output_dir.parent / "collection" / name for name in ("train.jsonl", "log.jsonl")]
    short = ["--max_query_tokens", 24, "--max_pair_tokens", 96, *limits]
    source = ["--pretrained", pretrained] if pretrained else ["--config", config, "--data", *texts, *short]
    stage(init, *source, "--seed", arguments.seed, "--output_dir", output_dir)


def step(arguments: DemoArguments, queries: int, learning_rate: float) -> list[object]:
    size = ["--per_device_train_batch_size", queries, "--learning_rate", learning_rate]
    return [*size, "--adam_beta2", 0.98, "--seed", arguments.seed]


def stage(module: Any, *flags: object) -> float:
    """Run a command of ours in this process; returns the seconds that it took."""
    argv = [str(flag) for flag in flags]
    scripts = {build_engines: "build_engines.py", rank: "client/rank.py"}
    name = scripts.get(module, f"-m {module.__name__}")
    print(f"\n$ python {name} {shlex.join(argv)}", flush=True)
    started = time.perf_counter()
    if code := module.main(argv):
        raise StageFailedError(f"{module.__name__} ended with exit code {code}")
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
