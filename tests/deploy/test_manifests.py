"""The compose file and the Kubernetes manifests, as far as they can be tried without either: on a real Triton 2.51."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
import yaml

from client.probe import main as probe
from tests.support.prometheus import DEPLOY
from tests.support.servers import COMMAND, Server, ports, running

KEY = "0123abcd"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]["triton"]
RESOURCES: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text()))
POD: dict[str, Any] = RESOURCES[0]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMMANDS = {"compose": COMPOSE["command"], "kubernetes": CONTAINER["args"]}
PROBES = [CONTAINER[f"{kind}Probe"]["exec"]["command"] for kind in ("startup", "readiness", "liveness")]


@pytest.fixture(scope="module")
def server(served_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the flags of the compose file that say who may do what."""
    flags = [re.sub(r"\$\{.*?\}", KEY, flag) for flag in COMPOSE["command"] if "-restricted-" in flag]
    assert len(flags) == 2
    control = "--model-control-mode=none"
    with running(served_repository, tmp_path_factory.mktemp("closed") / "log", *flags, control) as server:
        yield server


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_triton_knows_the_flags(command: list[str]) -> None:
    shown = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, timeout=180)
    known = set(re.findall(r"^  (--[\w-]+)", shown.stdout + shown.stderr, flags=re.MULTILINE))
    assert command[0] == "tritonserver"
    assert {flag.partition("=")[0] for flag in command[1:]} <= known


def test_containers_may_do_little() -> None:
    assert COMPOSE["read_only"] and COMPOSE["cap_drop"] == ["ALL"] and COMPOSE["user"] == "1000:1000"
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["ports"])
    assert all(volume.endswith(":ro") for volume in COMPOSE["volumes"])
    assert POD["securityContext"]["runAsNonRoot"] and not POD["automountServiceAccountToken"]
    rights = CONTAINER["securityContext"]
    assert rights["readOnlyRootFilesystem"] and rights["capabilities"] == {"drop": ["ALL"]}
    assert rights["allowPrivilegeEscalation"] is False
    assert {volume["name"] for volume in POD["volumes"]} == {mount["name"] for mount in CONTAINER["volumeMounts"]}


def test_the_probes_are_commands_of_ours_with_time_to_end(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, command in zip(("startup", "readiness", "liveness"), PROBES, strict=True):
        assert command[:4] == ["python3", "-m", "client.probe", "localhost:8001"]
        assert float(command[-1]) < CONTAINER[f"{kind}Probe"]["timeoutSeconds"]
        assert probe([server.url, *command[4:-1], "60"]) == 0, capsys.readouterr()


def test_whoever_has_no_key_may_rank_and_nothing_else(server: Server) -> None:
    with grpc.InferenceServerClient(server.url) as client:
        closed: dict[str, Callable[[dict[str, str] | None], object]] = {
            "model control": lambda headers: client.get_model_repository_index(headers),
            "shared memory": lambda headers: client.get_system_shared_memory_status(headers=headers),
            "traces": lambda headers: client.get_trace_settings(headers=headers),
            "logs": lambda headers: client.get_log_settings(headers=headers),
        }
        for ask in closed.values():
            with pytest.raises(grpc.InferenceServerException, match="protocol is restricted"):
                ask(None)
            ask({"triton-grpc-protocol-admin-key": KEY})
    for path in ("logging", "trace/setting", "systemsharedmemory/status", "models/student/trace/setting"):
        assert _status(server, path) == 403, path
        assert _status(server, path, **{"admin-key": KEY}) == 200, path


def _status(server: Server, path: str, **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{server.ports['http']}/v2/{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_compose_ends_a_server_only_if_it_has_served_and_fails_twice(server: Server, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{ports()['grpc']}"
    assert _health_check(nobody, tmp_path) == 1 and not (tmp_path / "ended").exists()
    assert _health_check(server.url, tmp_path) == 0
    assert _health_check(nobody, tmp_path) == 1 and (tmp_path / "ended").exists()


def _health_check(url: str, folder: Path) -> int:
    """Run the script against this address; in the place of what ends the server it makes the file ``ended``."""
    kind, script = COMPOSE["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    placed = {"python3": sys.executable, "localhost:8001": url, "/tmp/served": folder / "served"}
    for written, wanted in {**placed, "kill 1": f"touch {folder}/ended"}.items():
        assert written in script
        script = script.replace(written, str(wanted))
    return subprocess.run(["sh", "-c", script], timeout=180).returncode
