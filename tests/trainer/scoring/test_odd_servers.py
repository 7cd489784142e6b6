"""Relabelling through servers that are broken for a while or refuse queries: what is waited for, listed and counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from tqdm import tqdm

from client import ServerError, patience
from tests.support.checkpoints import write_groups
from tests.support.odd_servers import OddServer, odd_server, refusing
from tests.support.stages import run
from tests.support.stores import Store, forget
from trainer import addresses, score
from trainer.cluster import Row
from trainer.data.rankings import write_run
from trainer.data.records import DataError, read_groups
from trainer.data.survey import Survey, surveyed
from trainer.scoring.checkpoint import progress
from trainer.scoring.cluster import Worker, score_shards
from trainer.scoring.servers import TritonScorer
from trainer.scoring.shards import Shard
from trainer.scoring.teachers import ScoreArguments

REFUSED = StatusCode.INVALID_ARGUMENT, "document 1 is too long"
LIST = "scores.parquet.failed.jsonl"


def test_a_job_waits_for_a_server_that_is_broken_and_does_not_break_it_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    groups = read_groups(write_groups(tmp_path / "pool.jsonl", queries=1, documents=10))
    stub = StatusCode.INTERNAL, "Stub process 'teacher_0_0' is not healthy."
    service = OddServer(act=refusing(*stub, times=patience.BREAKS), limit=20)
    with (
        odd_server(service) as url,
        closing(TritonScorer([url], "ranker", 1, 60)) as scorer,
        progress("t", 10) as bar,
    ):
        assert len(list(scorer.scores(groups, bar))) == 10
        assert {one["priority"] for one in service.parameters} == {2}
        service.act, asked = refusing(*stub), len(service.sizes)
        with pytest.raises(ServerError, match=f"query '{groups[0].query_id}': {url}: INTERNAL: Stub process"):
            list(scorer.scores(groups, bar))
        assert len(service.sizes) == asked + patience.BREAKS + 1


@pytest.mark.parametrize("source", ["--run", "--triton"])
def test_the_list_of_an_earlier_command_of_another_machine_goes_with_its_scores(
    source: str, given: str, store: Store, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, order = read_groups(data), tmp_path / "order.run"
    places = {group.query_id: {each.doc_id: -float(n) for n, each in enumerate(group.documents)} for group in groups}
    write_run(order, places, "t")
    flags = ["--data", data, "--output", f"{given}/scores.parquet"]
    with odd_server(OddServer(act=refusing(*REFUSED, times=1), limit=20)) as url:
        asks = ["--triton", url, "--triton_model", "ranker", "--in_flight", 1]
        run(score, *flags, *asks, "--max_failed", 1)
        assert f"{given}/{LIST}: 1 queries that the servers refused" in capsys.readouterr().out
        assert LIST in store.files()
        forget()
        run(score, *flags, *([source, order] if source == "--run" else asks))
    assert "refused" not in capsys.readouterr().out
    assert {"scores.parquet"} == {name for name in store.files() if "scores.parquet" in name}


class Nodes:
    """In Ray's place: each shard is scored, as its row is asked for, on a machine that sees the store alone."""

    ActorPoolStrategy = dict

    def __init__(self, root: Path) -> None:
        self.data, self.root = self, root

    def from_items(self, tasks: list[Row], override_num_blocks: int) -> Nodes:
        self.tasks = tasks
        return self

    def map(self, worker: type[Worker], fn_constructor_args: tuple[Any, ...], **_: Any) -> Nodes:
        self.start = partial(worker, *fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[Row]:
        for number, task in enumerate(self.tasks):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DISRANKER_MIRROR", str(self.root / str(number)))
                row = self.start()(task)
            yield row


def test_refusals_of_nodes_that_do_not_see_each_other_stop_the_command_at_one_too_many(
    given: str, store: Store, data: Path, tmp_path: Path
) -> None:
    found = Survey.of([str(data)], lambda rows: map(surveyed, rows))
    shards = [Shard(place, place + 1) for place in range(len(found.pairs))]
    directory = addresses.local(f"{given}/.scores.parquet.shards")
    assert len(shards) == 4
    with odd_server(OddServer(act=refusing(*REFUSED), limit=20)) as url:
        arguments = ScoreArguments(data=[str(data)], output="scores.parquet", triton=[url], triton_model="ranker",
                                   max_failed=1)  # fmt: skip
        with pytest.raises(DataError, match=r"query 'q1', .*document 1 is too long; --max_failed 1 allows no more"):
            score_shards(Nodes(tmp_path), arguments, shards, found, directory, tqdm(disable=True))
    made = store.files(".scores.parquet.shards")
    assert {name.partition(".")[0] for name in made} == {shard.path(directory).stem for shard in shards[:2]}
    lists = [json.loads(path.read_text()) for path in sorted(directory.glob("*.failed.jsonl"))]
    assert [each["query_id"] for each in lists] == ["q0", "q1"]
