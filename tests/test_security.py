"""A server answers some calls to anyone, others only to those with the key, and encrypts."""

from __future__ import annotations

import re
import shlex
import subprocess
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import tritonclient.grpc as grpc

from client import RankingClient, ServerUnavailableError
from embedded_triton import ADMIN_KEY
from tests import ROOT
from tests.support.requests import QUERY, answer, assert_equal, documents
from tests.support.servers import Reference, Server, running

CLOSED = ["/v2/repository/index", "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status"]
OPEN = ["/v2/health/ready", "/v2/models/ranker/ready", "/v2/models/ranker", "/v2/models/ranker/stats"]


def status(server: Server, path: str, key: str = "") -> int:
    method = "POST" if "repository" in path else "GET"
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.ports['http']}{path}", b"" if method == "POST" else None, {"admin-key": key}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_only_ranking_is_open_to_everyone(server: Server) -> None:
    assert [status(server, path) for path in OPEN] == [200] * len(OPEN)
    assert [status(server, path) for path in CLOSED] == [403] * len(CLOSED)
    assert server.metrics("nv_inference_count") >= 0
    with grpc.InferenceServerClient(server.url) as raw:
        for call in (
            raw.get_model_repository_index,
            raw.get_log_settings,
            raw.get_trace_settings,
            raw.get_system_shared_memory_status,
            lambda: raw.load_model("student"),
            lambda: raw.update_log_settings({"log_verbose_level": 1}),
            lambda: raw.register_system_shared_memory("region", "/region", 8),
        ):
            with pytest.raises(grpc.InferenceServerException, match="This protocol is restricted"):
                call()


PEM = {"root_certificates": "ca", "certificate_chain": "gateway", "private_key": "gateway-key"}


def commands(heading: str) -> list[str]:
    """The indented commands of a section of docs/serving.md."""
    section = (
        (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    )
    joined = re.sub(r"\\\n\s*", "", section)
    return [line.strip() for line in joined.splitlines() if line.startswith("    ")]


def test_the_documented_certificates_encrypt_and_name_both_sides(
    served_repository: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/serving.md, with the key of its example."""
    lines = commands("Encryption and keys")
    for line in (line for line in lines if line.startswith("openssl")):
        subprocess.run(line, shell=True, check=True, cwd=tmp_path, capture_output=True)
    (serve,) = (shlex.split(line) for line in lines if line.startswith("tritonserver"))
    flags = [flag for flag in serve if flag.startswith("--grpc")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ADMIN_KEY, "sesame")
    files: dict[str, Any] = {name: Path(f"{file}.pem") for name, file in PEM.items()}
    candidates = documents(5)
    with running(served_repository, tmp_path / "log", *flags) as server:
        assert [status(server, path, "sesame") for path in CLOSED] == [200] * len(CLOSED)
        address = server.url.replace("127.0.0.1", "localhost")
        with RankingClient(address, **files) as client:
            assert_equal(answer(client, QUERY, candidates), reference(QUERY, candidates))
        for authority in (None, files["root_certificates"]):
            stranger = RankingClient(address, attempts=1, root_certificates=authority)
            with stranger, pytest.raises(ServerUnavailableError):
                stranger.score(QUERY, ["river"])
