"""Relabel and prepare on a local Ray cluster, whose nodes are killed at random, and beside the commands without Ray.

    python -m bench.cluster chaos --pairs 200000
    python -m bench.cluster speed --pairs 50000
    python -m bench.cluster prepare --impressions 300000

``chaos`` starts three nodes, kills one after the other while ``trainer.score`` works on them, and once the command
itself. It then compares the scores with those that the command gives without Ray. ``speed`` has the wall time of both
for one and for two workers, over twice the pairs less over the pairs, so that what a start costs is not in it.
``prepare`` has the wall time of ``trainer.prepare`` on a drawn log, and whether the files are those without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench.children import StartError
from bench.preparation.log import write_log
from bench.report import show, table_of
from client.command import command
from trainer.cluster import SETTINGS

DOCUMENTS, WORDS, FILES = 20, 24, 8
SHAPE = {
    "model_type": "bert", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
LIMITS = ["--max_query_tokens", "16", "--max_pair_tokens", "64", "--row_length", "64", "--vocab_size", "2000"]
BETWEEN = (2, 6)  # shards that are there before a node dies
# The same sums everywhere: a library may add in another order with more threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def queries(pairs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Records of drawn words; texts have any length up to WORDS."""
    draw = np.random.default_rng(seed)
    vocabulary = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "no", "ra", "su") for b in ("ne", "ri", "ta", "vo")]
    for number in range(pairs // DOCUMENTS):
        texts = [" ".join(draw.choice(vocabulary, draw.integers(1, WORDS))) for _ in range(DOCUMENTS + 1)]
        documents = [{"doc_id": f"d{place}", "title": "", "summary": text} for place, text in enumerate(texts[1:])]
        yield {"query_id": f"q{seed}-{number}", "query": texts[0][:60], "documents": documents}


def make(folder: Path, pairs: int) -> None:
    """``pool``, a folder of JSON lines, and ``teacher``, a tiny BERT with drawn weights."""
    (folder / "pool").mkdir()
    records = queries(pairs, seed=0)
    for part in range(FILES):
        share = islice(records, -(-pairs // DOCUMENTS // FILES))
        lines = [json.dumps(record) + "\n" for record in share]
        (folder / "pool" / f"part-{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "shape.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    first = str(folder / "pool/part-0.jsonl")
    config = ["--config", str(folder / "shape.json"), "--data", first, "--output_dir", str(folder / "teacher")]
    subprocess.run([sys.executable, "-m", "trainer.init", *config, *LIMITS], check=True)


def scoring(folder: Path, output: str, pairs_per_shard: int, *flags: str) -> list[str]:
    given = {"model": "teacher", "data": "pool", "output": output}
    named = [part for name, path in given.items() for part in (f"--{name}", str(folder / path))]
    return [sys.executable, "-m", "trainer.score", *named, "--pairs_per_shard", str(pairs_per_shard), *flags]


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A Ray cluster on this machine: a head that scores nothing, and nodes with a core each."""
    from ray.cluster_utils import Cluster  # an extra

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def strike(cluster: Any, draw: random.Random) -> None:
    """Kill a node with its workers, and bring another one."""
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
    cluster.remove_node(draw.choice(nodes), allow_graceful=False)
    cluster.add_node(num_cpus=1)


def under_chaos(command: list[str], cluster: Any, shards: Path, draw: random.Random) -> tuple[int, int]:
    """Run the command to its end; each time that some more shards are there, a node dies, and after the second node
    the command. How many of each did."""
    nodes, drivers, process = 0, 0, subprocess.Popen(command)
    wanted = draw.randint(*BETWEEN)
    try:
        while (code := process.poll()) is None:
            done = len([*shards.glob("*-*.parquet")])
            if done >= wanted:
                strike(cluster, draw)
                nodes, wanted = nodes + 1, done + draw.randint(*BETWEEN)
                if nodes == 2:
                    process.kill()
                    process.wait()
                    drivers, process = drivers + 1, subprocess.Popen(command)
            time.sleep(draw.uniform(0, 0.2))
    finally:
        process.kill()  # nothing, where it has ended
    if code:
        raise StartError(f"the command ended with {code}")
    return nodes, drivers


def scores_of(path: Path) -> list[tuple[tuple[str, str], float]]:
    columns = pq.read_table(path).to_pydict()
    return [*zip(zip(columns["query_id"], columns["doc_id"], strict=True), columns["score"], strict=True)]


def verdict(here: Path, there: Path) -> str:
    """How often pairs are in the second file, and how far its scores are from those of the first."""
    wanted, pairs = dict(scores_of(here)), scores_of(there)
    found = dict(pairs)
    wrong = len(pairs) - len(found) + len(wanted.keys() ^ found.keys())
    off = max(abs(score - found.get(pair, np.inf)) for pair, score in wanted.items())
    return f"{len(pairs):,} pairs, {wrong:,} of them missing or there twice; scores differ by {off:g} at most"


def chaos(folder: Path, arguments: argparse.Namespace) -> None:
    make(folder, arguments.pairs)
    per_shard = -(-arguments.pairs // arguments.shards)
    seconds(scoring(folder, "here.parquet", per_shard))
    with cluster_of(arguments.nodes) as cluster:
        flags = ["--ray", cluster.address, "--ray_workers", str(arguments.nodes)]
        command = scoring(folder, "there.parquet", per_shard, *flags)
        nodes, drivers = under_chaos(command, cluster, folder / ".there.parquet.shards", random.Random(arguments.seed))
    print(f"{nodes} nodes and {drivers} commands killed:", verdict(folder / "here.parquet", folder / "there.parquet"))


def speed(folder: Path, arguments: argparse.Namespace) -> None:
    table = table_of(
        "Relabelling, seconds and pairs a second", ["command", "s", "of twice the pairs, s", "pairs/s"], []
    )
    sizes = [arguments.pairs, 2 * arguments.pairs]
    for size in sizes:
        (folder / str(size)).mkdir()
        make(folder / str(size), size)
    for name, flags in (
        ("without Ray", []),
        *((f"--ray --ray_workers {n}", ["--ray", "--ray_workers", str(n)]) for n in (1, 2)),
    ):
        once, twice = (
            seconds(scoring(folder / str(size), f"{name}.parquet", arguments.pairs // 10, *flags)) for size in sizes
        )
        table.add_row(name, f"{once:.1f}", f"{twice:.1f}", f"{arguments.pairs / (twice - once):,.0f}")
    show(table)


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    write_log(folder / "raw", arguments.impressions, rows_of_file=-(-arguments.impressions // FILES))
    table = table_of(f"Preparing {arguments.impressions:,} impressions", ["command", "s", "same files"], [])
    for workers in (0, 1, 2):
        flags = ["--ray", "--ray_workers", str(workers)] if workers else []
        given = ["--mapping", str(folder / "raw/log.toml"), "--output_dir", str(folder / f"{workers}")]
        flags += ["--max_failed", str(arguments.impressions)]
        took = seconds([sys.executable, "-m", "trainer.prepare", *given, *flags])
        here, there = (
            {path.name: path.read_bytes() for path in (folder / name).iterdir() if path.suffix != ".html"}
            for name in ("0", f"{workers}")
        )
        same = ("yes" if here == there else "no") if workers else ""
        table.add_row(" ".join(flags[:-2]) or "without Ray", f"{took:.1f}", same)
    show(table)


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["chaos", "speed", "prepare"])
    parser.add_argument("--pairs", type=int, default=200_000, help="default %(default)s")
    parser.add_argument("--impressions", type=int, default=300_000, help="of prepare, default %(default)s")
    parser.add_argument("--nodes", type=int, default=3, help="of chaos, default %(default)s")
    parser.add_argument("--shards", type=int, default=40, help="of chaos, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    arguments = parser.parse_args(argv)
    os.environ.update({**SETTINGS, **ONE_THREAD})
    with tempfile.TemporaryDirectory() as folder:
        {"chaos": chaos, "speed": speed, "prepare": prepare}[arguments.study](Path(folder), arguments)


if __name__ == "__main__":
    sys.exit(main())
