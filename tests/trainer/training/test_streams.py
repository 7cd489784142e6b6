"""Data that is read as training goes: every query once, in the same order wherever and whenever it is read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

from tests.support.checkpoints import training_group, write_groups
from tests.support.records import written
from trainer.data.records import DataError, QueryGroup, iter_groups, read_groups
from trainer.training.batches import SKIPPED, PassOver, TrainingGroup
from trainer.training.streams import DataArguments, GroupList, GroupStream

QUERIES, PER_STEP = 53, 4


def take(group: QueryGroup) -> TrainingGroup | None:
    """All but every tenth query."""
    return None if group.query_id.endswith("9") else training_group(group)


def stream(path: Path, buffer: int = 8, epoch: int = 0, documents: int | None = None) -> GroupStream:
    arguments = DataArguments(data=[str(path)], shuffle_buffer=buffer, documents_per_query=documents)
    kept = sum(take(group) is not None for group in iter_groups(path))
    groups = GroupStream(arguments, take, kept, pairs=kept, seed=3, groups_per_step=PER_STEP)
    groups.set_epoch(epoch)
    return groups


def ids(groups: Any) -> list[str]:
    return [group.query_id for group in groups]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "data.jsonl", queries=QUERIES)


@pytest.mark.parametrize("buffer", [1, 8, 1000])
def test_every_query_comes_once_in_an_epoch(path: Path, buffer: int) -> None:
    in_file = ids(filter(None, map(take, iter_groups(path))))
    shuffled = ids(stream(path, buffer))
    assert sorted(shuffled) == sorted(in_file)
    assert len(shuffled) == len(stream(path))
    assert (shuffled == in_file) == (buffer == 1)
    assert all(in_file.index(query) - place < buffer + 1 for place, query in enumerate(shuffled))


def test_an_epoch_has_an_order_of_its_own_and_always_the_same(path: Path) -> None:
    assert ids(stream(path, epoch=1)) == ids(stream(path, epoch=1)) != ids(stream(path, epoch=2))
    drawn = [[group.targets for group in stream(path, documents=3, epoch=epoch)] for epoch in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {len(targets) for targets in drawn[0]} == {3}


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_every_step_without_loss(path: Path, processes: int) -> None:
    steps = [ids(batch) for batch in DataLoader(stream(path), batch_size=PER_STEP, collate_fn=list)]
    size = PER_STEP // processes
    parts = (IterableDatasetShard(stream(path), size, False, processes, process) for process in range(processes))
    shards = [DataLoader(part, batch_size=size, collate_fn=list) for part in parts]
    together = [[query for part in parts for query in ids(part)] for parts in zip(*shards, strict=True)]
    assert together[:-1] == steps[:-1]
    assert together[-1][: len(steps[-1])] == steps[-1]  # filled up from the first step


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_ahead_and_change_nothing(path: Path, workers: int) -> None:
    alone = [ids(batch) for batch in DataLoader(stream(path), batch_size=PER_STEP, collate_fn=list)]
    ahead = DataLoader(stream(path), batch_size=PER_STEP, collate_fn=list, num_workers=workers)
    assert [ids(batch) for batch in ahead] == alone


def test_a_run_goes_on_where_it_was_and_encodes_nothing_twice(path: Path) -> None:
    whole = [ids(batch) for batch in DataLoader(stream(path, epoch=2), batch_size=PER_STEP, collate_fn=list)]
    groups = stream(path)
    groups.resume_at(2 + 5 / len(whole))
    encoded: list[list[str]] = []

    def collate(batch: Any) -> Any:
        encoded.append(ids(batch))
        return {"queries": ids(batch)}

    rest = list(DataLoader(groups, batch_size=PER_STEP, collate_fn=PassOver(collate)))
    assert rest[:5] == [{}] * 5
    assert encoded == whole[5:]
    assert list(groups)[:20] == [SKIPPED] * 20


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    peaks = []
    for queries in (200, 1000):
        path = write_groups(tmp_path / f"{queries}.jsonl", queries=queries, documents=10)
        if suffix == "parquet":
            table = pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])
            pq.write_table(table, path := path.with_suffix(".parquet"), row_group_size=100)
        groups = stream(path, buffer=20)
        tracemalloc.start()
        assert sum(1 for _ in groups) == len(groups)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 64 * 800  # a few words a query, to tell those that come twice


def test_bad_ways_to_read_are_refused() -> None:
    with pytest.raises(DataError, match="--shuffle_buffer must be at least 1, not 0"):
        DataArguments(data=["a"], shuffle_buffer=0)
    with pytest.raises(DataError, match="--label_scale takes the lowest and the highest label"):
        DataArguments(data=["a"], label_scale=[3.0, 0.0])


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A collection with a first stage, as ir_datasets registers one."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    written(tmp_path / "docs.tsv", *(f"d{number}\ttext {number}" for number in range(6)))
    written(tmp_path / "queries.tsv", "q1\tfirst query", "q2\tsecond query", "q3\tnothing found")
    written(tmp_path / "qrels", "q1 0 d3 2", "q1 0 d0 0", "q2 0 d1 1")
    written(tmp_path / "run", "q1 Q0 d4 1 9.0 bm25", "q1 Q0 d3 2 8.0 bm25", "q2 Q0 d5 1 3.0 bm25")
    docs, queries, qrels, run = (
        ir_datasets.util.LocalDownload(tmp_path / name) for name in ("docs.tsv", "queries.tsv", "qrels", "run")
    )
    formats = ir_datasets.formats
    texts, judged = (formats.TsvDocs(docs), formats.TsvQueries(queries)), formats.TrecQrels(qrels, {})
    dataset = ir_datasets.Dataset(*texts, judged, formats.TrecScoredDocs(run))
    ir_datasets.registry.register("disranker-local", dataset)
    yield "ir_datasets:disranker-local"
    del ir_datasets.registry._registered["disranker-local"]


def test_collections_of_ir_datasets_are_read(collection: str) -> None:
    groups = {group.query_id: group for group in iter_groups(collection)}
    assert groups.keys() == {"q1", "q2"}
    assert groups["q1"].query == "first query"
    first = [(document.doc_id, document.summary, document.label) for document in groups["q1"].documents]
    assert first == [("d4", "text 4", None), ("d3", "text 3", 2.0), ("d0", "text 0", 0.0)]
    assert [document.doc_id for document in groups["q2"].documents] == ["d5", "d1"]


def test_collections_that_cannot_be_read_are_named() -> None:
    with pytest.raises(DataError, match="ir_datasets:no/such: cannot be read: ir_datasets knows no such dataset"):
        read_groups("ir_datasets:no/such")


def test_documents_are_drawn_anew_in_each_epoch_with_their_targets(data: Path) -> None:
    group = read_groups(data)[0]
    numbers = tuple(float(place) for place in range(len(group.documents)))
    groups = GroupList([TrainingGroup("q", group.query, group.documents, numbers, numbers)] * 3, 3, seed=0)
    seen = set()
    for epoch in range(10):
        groups.set_epoch(epoch)
        drawn = groups[0]
        assert drawn == groups[0]  # whenever it is asked for
        assert drawn.targets == drawn.labels
        assert [group.documents[int(target)] for target in drawn.targets] == list(drawn.documents)
        assert len(set(drawn.targets)) == 3
        seen.add(drawn.targets)
    assert len(seen) > 3
    assert len({groups[index].targets for index in range(3)}) > 1
