"""Which versions Triton serves: the copies of that rule which run without protobuf, against protobuf's reading."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from engines.repository.configs import served_version, served_versions
from model_repository.student import check_engine
from tests import ROOT

SCRIPT = ROOT / "model_repository/student/check_engine.py"
COPIES = [SCRIPT, ROOT / "embedded_triton.py", *(ROOT / "model_repository/tokenizer").glob("*request*.py")]
PARTS = {"NO_SETTING", "SPECIFIC", "NUMBER", "served_versions"}
NAMES = ["1", "2", "9", "10", "0", "07", "3.partial", ".11.partial", "configs", "²", "12 "]
MISLEADING = 'parameters { key: "k" value: { string_value: "version_policy { specific { versions: 7 } } # \\" \'" } }'
COMMENT = "# version_policy { specific { versions: 8 } }\n"


def rule(path: Path) -> dict[str, str]:
    """The code of the rule in a file, by name."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    names = {
        statement.name if isinstance(statement, ast.FunctionDef) else ast.unparse(statement).partition(" = ")[0]: (
            ast.unparse(statement)
        )
        for statement in statements
    }
    return {name: text for name, text in names.items() if name in PARTS}


def test_all_copies_are_the_same() -> None:
    first, *others = [found for found in map(rule, COPIES) if found]
    assert set(first) == PARTS
    assert len(others) == 2 and all(other == first for other in others)


def written(versions: Sequence[int], policy: str, one_line: bool) -> str:
    config = ModelConfig(name="student")
    if policy == "specific":
        config.version_policy.specific.versions.extend(versions)
    elif policy == "latest":
        config.version_policy.latest.num_versions = 2
    elif policy == "all":
        config.version_policy.all.SetInParent()
    return str(text_format.MessageToString(config, as_one_line=one_line))


@given(
    directories=st.sets(st.sampled_from(NAMES)),
    files=st.sets(st.sampled_from(["3", "20", "model.py"])),
    versions=st.lists(st.integers(1, 12), min_size=1, max_size=3, unique=True),
    policy=st.sampled_from(["none", "specific", "latest", "all"]),
    one_line=st.booleans(),
    around=st.sampled_from(["", COMMENT, MISLEADING + "\n", COMMENT + MISLEADING + COMMENT]),
)
def test_the_copies_read_as_protobuf_does(
    directories: set[str], files: set[str], versions: list[int], policy: str, one_line: bool, around: str
) -> None:
    with tempfile.TemporaryDirectory() as path:
        model = Path(path)
        for name in directories:
            (model / name).mkdir()
        for name in files:
            (model / name).touch()
        (model / "config.pbtxt").write_text(around + written(versions, policy, one_line))
        expected = served_versions(model)
        assert check_engine.served_versions(model, model / "config.pbtxt") == expected
        if policy == "specific":
            assert expected == versions
        else:
            there = [int(name) for name in directories & {"1", "2", "9", "10"}]
            assert expected == sorted(there)[-1:]


@pytest.mark.parametrize(
    "policy",
    [
        "version_policy: { specific: { versions: [ 2, 1 ] } }",
        "version_policy { specific { versions: 2, versions: 1 } }",
        "version_policy {  # by hand\n  specific {\n    versions: [2, 1]\n  }\n}",
    ],
)
def test_configs_written_by_hand(policy: str, tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(f'name: "student"\n{policy}\n')
    (tmp_path / "3").mkdir()
    assert check_engine.served_versions(tmp_path, tmp_path / "config.pbtxt") == served_versions(tmp_path) == [2, 1]
    assert served_version(tmp_path) == 2
