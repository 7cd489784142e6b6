"""A teacher's scores on a Ray cluster, by Ray Data's pool of actors.

Places travel, texts do not: a worker gets the place of a shard, reads its queries from the files, scores them as a
process on one machine would, and writes the shard, which appears whole. A shard whose worker, node or driver died is
scored again, by another worker or by the same command started again, and replaces what the dead one may have written.
Each worker has one shard under way and the next one waiting.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from trainer.addresses import local, shown
from trainer.cluster import Row, anywhere, checked, cores, seen, told
from trainer.data.records import IR_DATASETS, DataError, files_in, groups_between
from trainer.data.survey import Survey, surveyed
from trainer.scoring.checkpoint import LESS_MEMORY
from trainer.scoring.memory import naming_flags
from trainer.scoring.refusals import FAILED, allowed_in, write_shard
from trainer.scoring.shards import Shard
from trainer.scoring.teachers import ScoreArguments, Scorer, scorer_of
from trainer.storage import fetched


def with_whole_paths(arguments: ScoreArguments) -> ScoreArguments:
    """The same for workers, which begin in a working directory of Ray's; addresses and names of a hub stay."""
    data = [anywhere(source) for source in arguments.data]
    model, bi_encoder = (name and anywhere(name) for name in (arguments.model, arguments.bi_encoder))
    return replace(arguments, data=data, model=model, bi_encoder=bi_encoder)


def survey(ray: Any, sources: Sequence[str]) -> Survey:
    """Read everything once, a file a task, to find faults before the teacher's hours are spent.

    Raises DisRankerError where ``iter_groups`` raises DataError.
    """
    if datasets := [source for source in sources if source.startswith(IR_DATASETS)]:
        raise DataError(f"{datasets[0]}: --ray reads files and folders")

    def on_all_nodes(rows: list[Row]) -> Iterator[Row]:
        yield from ray.data.from_items(rows, override_num_blocks=len(rows)).map(surveyed, num_cpus=1).iter_rows()

    return Survey.of([file for source in sources for file in files_in(source)], on_all_nodes)


class Worker:
    """An actor with a teacher, which is loaded for the first shard."""

    def __init__(self, arguments: ScoreArguments, directory: str) -> None:
        self._arguments, self._directory = arguments, local(directory)
        self._scorer: Scorer | None = None
        self._open = ExitStack()

    def __call__(self, row: Row) -> dict[str, Any]:
        """Score a shard, and return its place, its pairs and the seconds without the loading, or the fault."""
        return told(lambda: self._scored(Shard(int(row["first"]), int(row["last"])), json.loads(row["parts"])))

    def _scored(self, shard: Shard, places: list[tuple[str, int, int]]) -> dict[str, Any]:
        with naming_flags(LESS_MEMORY):
            scorer = self._loaded()
            started = time.perf_counter()
            queries = [group for file, *ends in places for group in groups_between(fetched(file, ()), *ends)]
            path, most = shard.path(self._directory), self._arguments.max_failed
            pairs = write_shard(path, scorer, queries, tqdm(disable=True), most)
        took = {"pairs": pairs, "seconds": time.perf_counter() - started}
        return {**shard._asdict(), **took, "worker": f"{socket.gethostname()}, process {os.getpid()}"}

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            self._scorer = self._open.enter_context(scorer_of(self._arguments))
        return self._scorer


@dataclass
class Speed:
    """The pairs that a worker has scored, and the time for them."""

    pairs: int = 0
    seconds: float = 0.0

    @property
    def pairs_per_s(self) -> float:
        return self.pairs / self.seconds


def score_shards(
    ray: Any, arguments: ScoreArguments, shards: Sequence[Shard], found: Survey, directory: Path, bar: tqdm[NoReturn]
) -> dict[str, Speed]:
    """Score the shards, bring those here that workers put into a store, and return the workers' speeds.

    Raises DataError and others as a teacher on this machine does, also for refusals that only all workers together
    have too many of, and ClusterError for files that are not seen here.
    """
    speeds = dict[str, Speed]()
    if not shards:
        return speeds
    tasks = [{**shard._asdict(), "parts": json.dumps([*found.parts(*shard)])} for shard in shards]
    workers, gpus = workers_of(ray, arguments)
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        Worker, fn_constructor_args=(arguments, shown(str(directory.absolute()))),
        num_cpus=0 if gpus else 1, num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(tasks)), max_tasks_in_flight_per_actor=2),
    )  # fmt: skip
    for row in map(checked, rows.iter_rows()):
        path = Shard(int(row["first"]), int(row["last"])).path(directory)
        refused = Path(fetched(shown(str(path.with_suffix(FAILED))), ()))
        seen(path, row["worker"], "--output")
        if refused.exists():
            allowed_in(directory, arguments.max_failed)
        speed = speeds.setdefault(row["worker"], Speed())
        speed.pairs, speed.seconds = speed.pairs + row["pairs"], speed.seconds + row["seconds"]
        bar.update(row["pairs"])
        bar.set_postfix_str(f"{len(speeds)} workers, {min(each.pairs_per_s for each in speeds.values()):,.0f} to "
                            f"{max(each.pairs_per_s for each in speeds.values()):,.0f} pairs/s each")  # fmt: skip
    return speeds


def workers_of(ray: Any, arguments: ScoreArguments) -> tuple[int, int]:
    """The number of workers, and of GPUs for each."""
    if arguments.triton is not None:
        return arguments.ray_workers or 1, 0
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return arguments.ray_workers or gpus or cores(ray), min(gpus, 1)
