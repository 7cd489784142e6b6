"""Sets mixed by weight: in every epoch their shares, over the epochs all of their queries equally often."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.support.checkpoints import training_group, write_groups
from trainer.data.records import DataError, read_groups
from trainer.training.mix import mix_of
from trainer.training.run import StageArguments
from trainer.training.streams import DataArguments, GroupList, GroupStream, training_groups

SETS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.3, 3)), min_size=1, max_size=4)
NAMES = ("a", "b", "c", "d")


@given(SETS, st.integers(0, 3), st.integers(1, 5))
def test_an_epoch_has_its_shares_and_no_query_comes_twice_before_all_came_once(
    sets: list[tuple[int, float]], seed: int, epochs: int
) -> None:
    """In memory and as a stream, whatever the sizes."""
    sizes, weights = zip(*sets, strict=True)
    try:
        mix = mix_of(weights, NAMES[: len(sets)], sizes, seed)
    except DataError as error:
        assert "leaves 0 in an epoch" in str(error)
        return
    ideal = np.array(weights) / sum(weights) * sum(sizes)
    assert sum(mix.parts) == sum(sizes)
    assert np.abs(mix.parts - ideal).max() < 1
    everything = [(name, place) for name, size in zip(NAMES, sizes, strict=False) for place in range(size)]
    read = [lambda name=name, size=size: iter([(name, place) for place in range(size)])
            for name, size in zip(NAMES, sizes, strict=False)]  # fmt: skip
    kept, streamed = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for epoch in range(epochs):
        here = [everything[place] for place in mix.places(epoch)]
        there = list(mix.stream(read, epoch))
        assert there == list(mix.stream(read, epoch))
        for drawn in (here, there):
            assert [sum(name == chosen for chosen, _ in drawn) for name in NAMES[: len(sets)]] == mix.parts
        kept.update(here)
        streamed.update(there)
    for counts in (kept, streamed):
        for name, size in zip(NAMES, sizes, strict=False):
            often = [counts[name, place] for place in range(size)]
            assert max(often) - min(often) <= 1


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Two sets, of 12 queries ``a0``.. and of 20 queries ``b0``.."""
    return [str(write_groups(tmp_path / f"{name}.jsonl", queries=queries, name=name)) for name, queries in
            (("a", 12), ("b", 20))]  # fmt: skip


def mixed(sets: list[str], buffer: int | None, epoch: int = 0) -> GroupList | GroupStream:
    arguments = DataArguments(data=sets, mix=[3, 1], shuffle_buffer=buffer)
    training = StageArguments(output_dir="out", use_cpu=True, report_to="none", per_device_train_batch_size=4)
    groups = training_groups(arguments, training_group, training, "")
    groups.set_epoch(epoch)
    return groups


def ids(groups: GroupList | GroupStream) -> list[str]:
    loader = DataLoader(groups, batch_size=4, collate_fn=partial(map, lambda group: group.query_id))
    return [query for batch in loader for query in batch]


@pytest.mark.parametrize("buffer", [None, 5])
def test_a_mix_of_files(sets: list[str], buffer: int | None) -> None:
    groups = mixed(sets, buffer)
    epochs = [ids(mixed(sets, buffer, epoch)) for epoch in range(3)]
    assert len(groups) == 32
    assert [sum(query.startswith("a") for query in epoch) for epoch in epochs] == [24] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {query for epoch in epochs for query in epoch if query.startswith("b")} == {f"b{n}" for n in range(20)}
    assert any(one[0] != other[0] for one, other in zip(epochs[0], epochs[0][1:], strict=False))
    for epoch, expected in enumerate(epochs):
        assert ids(mixed(sets, buffer, epoch)) == expected


def test_without_a_mix_all_queries_come_once(sets: list[str]) -> None:
    groups = training_groups(DataArguments(data=sets), training_group, StageArguments(output_dir="out"), "")
    assert ids(groups) == [group.query_id for group in read_groups(*sets)]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("inf")], [1.0, float("nan")]])
def test_weights_that_are_none_are_refused(sets: list[str], weights: list[float]) -> None:
    with pytest.raises(DataError, match="--mix takes a finite weight above 0 for each --data, 2, not"):
        DataArguments(data=sets, mix=weights)


def test_a_set_without_queries_to_train_on_is_named(sets: list[str]) -> None:
    arguments = DataArguments(data=sets, mix=[3, 1])
    training = StageArguments(output_dir="out", use_cpu=True, report_to="none")
    with pytest.raises(DataError, match=r"b.jsonl: 0 queries to train on, of which --mix leaves \d in an epoch"):
        training_groups(
            arguments, lambda group: training_group(group) if group.query_id[0] == "a" else None, training, ""
        )


def test_queries_of_no_weight_are_left_out_and_a_file_of_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = StageArguments(output_dir="out", use_cpu=True, report_to="none")
    some = write_groups(tmp_path / "some.jsonl", queries=5, weights=(1.0, 0.0))
    groups = training_groups(DataArguments(data=[str(some)]), training_group, training, "without labels")
    assert ids(groups) == ["q0", "q2", "q4"]
    assert capsys.readouterr().err == "2 of 5 queries are left out: without labels, or the weight is 0\n"
    none = write_groups(tmp_path / "none.jsonl", queries=5, weights=(0.0,))
    with pytest.raises(DataError, match="or the weight is 0: nothing is left to train on"):
        training_groups(DataArguments(data=[str(none)]), training_group, training, "without labels")


def test_a_set_that_loses_its_queries_ends_the_training() -> None:
    read = iter([iter([1, 2]), iter([])])
    stream = mix_of([1], ["a"], [2], seed=0).stream([lambda: next(read)], epoch=0)
    with pytest.raises(DataError, match="lost all of its queries"):
        [*stream, *mix_of([1], ["a"], [2], seed=0).stream([lambda: iter([])], epoch=1)]
