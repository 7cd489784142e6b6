"""The table of engines agrees with what it names."""

from __future__ import annotations

import pytest

from engines.builders import Builder
from engines.parity import LIMITS
from engines.table import CALIBRATED, ENGINES, PRECISIONS
from tests import ROOT


@pytest.mark.parametrize("name", ENGINES)
def test_a_row_names_what_exists(name: str) -> None:
    engine = ENGINES[name]
    assert engine.name == name
    assert issubclass(engine.builder_class(), Builder)
    assert {*engine.calibrated} <= {*engine.precisions} <= LIMITS.keys()
    assert not engine.compared or engine.served_by, "here only the server's own classes can run an engine"
    if engine.served_by:
        assert engine.serving_class().__name__ == engine.served_by.partition(".")[2]
    else:
        assert name.startswith("tensorrt"), "only plans are opened by Triton itself"


def test_the_docs_name_every_engine_that_triton_serves() -> None:
    serving = (ROOT / "docs/serving.md").read_text()
    served = [name for name in ENGINES if name != "tensorrt_rtx"]
    assert [name for name in served if f"`{name}`" not in serving and f"--engine {name}" not in serving] == []


def test_the_flags_offer_every_precision_that_the_gate_has_limits_for() -> None:
    assert {*CALIBRATED} < {*PRECISIONS} == LIMITS.keys()
