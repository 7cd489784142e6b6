"""Which versions Triton serves, read without protobuf, against protobuf's reading."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from model_repository.student.served import served_version, served_versions

NAMES = ["1", "2", "9", "10", "0", "07", "3.partial", ".11.partial", "configs", "²", "12 "]
MISLEADING = 'parameters { key: "k" value: { string_value: "version_policy { specific { versions: 7 } } # \\" \'" } }'
COMMENT = "# version_policy { specific { versions: 8 } }\n"


def by_protobuf(model: Path) -> list[int]:
    config = ModelConfig()
    text_format.Parse((model / "config.pbtxt").read_text(), config)
    there = [int(path.name) for path in model.iterdir() if path.name in {"1", "2", "9", "10"}]
    return list(config.version_policy.specific.versions) or sorted(there)[-1:]


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
def test_it_reads_as_protobuf_does(
    directories: set[str], files: set[str], versions: list[int], policy: str, one_line: bool, around: str
) -> None:
    with tempfile.TemporaryDirectory() as path:
        model = Path(path)
        for name in directories:
            (model / name).mkdir()
        for name in files:
            (model / name).touch()
        (model / "config.pbtxt").write_text(around + written(versions, policy, one_line))
        assert served_versions(model) == by_protobuf(model)


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
    assert served_versions(tmp_path) == by_protobuf(tmp_path) == [2, 1]
    assert served_version(tmp_path) == 2
