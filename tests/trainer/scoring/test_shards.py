from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from trainer.data.records import JudgedDocument, QueryGroup
from trainer.scoring.shards import Shard, finished, list_missing, taken, wait_for_all

DOCUMENT = JudgedDocument("d", "", "", None, 0)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 1), max_size=40)), max_size=3),
)
def test_every_query_is_in_one_shard(pairs: list[int], stopped: list[tuple[int, list[int]]]) -> None:
    """Jobs of two processes, each with shards of another size, that stop when they like; the last one does not."""
    groups = [QueryGroup(str(place), "q", (DOCUMENT,) * size) for place, size in enumerate(pairs)]
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        for pairs_per_shard, turns in [*stopped, (7, [0, 1] * 30)]:
            list_missing(directory, pairs, pairs_per_shard)
            processes = [taken(directory, groups) for _ in range(2)]
            for turn in turns:
                shard, queries = next(processes[turn], (None, []))
                if shard is None:
                    continue
                assert queries == groups[shard.first : shard.last]
                assert sum(pairs[shard.first : shard.last - 1]) < pairs_per_shard
                shard.path(directory).touch()
        shards = finished(directory)
        assert [path.stem for path in wait_for_all(directory)] == [shard.path(directory).stem for shard in shards]
        places = [place for shard in shards for place in range(*shard)]
        assert places == list(range(len(pairs)))
        assert isinstance(shards[0], Shard)
