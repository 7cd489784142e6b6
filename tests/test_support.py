"""The checkpoints that tests are given are the same each time: no test passes or fails by the draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import tiny_bert, tiny_llama, tiny_roberta, tiny_xlm_roberta


@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta, tiny_xlm_roberta, tiny_llama])
def test_equal_calls_give_equal_files(make: Callable[[Path], Path], tmp_path: Path) -> None:
    first, *others = (make(tmp_path / str(number)) for number in range(3))
    names = {path.name for path in first.iterdir()}
    assert {"model.safetensors", "tokenizer.json"} < names
    for other in others:
        assert {path.name for path in other.iterdir()} == names
        assert [name for name in sorted(names) if (first / name).read_bytes() != (other / name).read_bytes()] == []
