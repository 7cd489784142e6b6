"""The compose file and the Kubernetes manifests, as far as they can be tried without either: against the schemas of
Kubernetes, on a real Triton 2.51, by the flags of the commands that they run."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tritonclient.grpc as grpc
import yaml

from client.probe import main as probe
from engines import store
from tests import ROOT
from tests.support.prometheus import DEPLOY
from tests.support.servers import COMMAND, Server, ports, running
from tests.test_imports import _source as source_of
from tests.test_imports import reached_from
from trainer import distill

KEY = "0123abcd"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]["triton"]
FILES = [path for name in ("kubernetes", "training") for path in sorted((DEPLOY / name).rglob("*.yml"))]
RESOURCES: dict[str, dict[str, Any]] = {
    f"{path.parent.name}/{resource['kind']}": resource
    for path in FILES
    for resource in yaml.safe_load_all(path.read_text())
}
SERVERS = RESOURCES["base/StatefulSet"]["spec"]
POD: dict[str, Any] = SERVERS["template"]["spec"]
(CONTAINER,), (MODEL,) = POD["containers"], POD["initContainers"]
JOB = RESOURCES["training/PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
(TRAINER,) = JOB["spec"]["containers"]
COMMANDS = {"compose": COMPOSE["command"], "kubernetes": CONTAINER["args"]}
# What Kubernetes itself has no schema for is held by these parts of it, which have one.
CUSTOM = {"Kustomization", "Component", "ScaledObject", "ServiceMonitor", "PyTorchJob"}
PARTS = {
    "the job's pod": {"apiVersion": "v1", "kind": "Pod", **JOB, "metadata": {"name": "distill"}},
    "the scaling": {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "disranker"},
        "spec": {
            "scaleTargetRef": RESOURCES["scaling/ScaledObject"]["spec"]["scaleTargetRef"],
            "maxReplicas": RESOURCES["scaling/ScaledObject"]["spec"]["maxReplicaCount"],
            **RESOURCES["scaling/ScaledObject"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"],
        },
    },
}  # fmt: skip
VALIDATED = PARTS | {name: one for name, one in RESOURCES.items() if one["kind"] not in CUSTOM}
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


@pytest.mark.parametrize("resource", VALIDATED.values(), ids=VALIDATED)
def test_kubernetes_knows_every_field(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_containers_may_do_little() -> None:
    assert COMPOSE["read_only"] and COMPOSE["cap_drop"] == ["ALL"] and COMPOSE["user"] == "1000:1000"
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["ports"])
    assert all(volume.endswith(":ro") for volume in COMPOSE["volumes"])
    for pod in (POD, JOB["spec"]):
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        for rights in (container["securityContext"] for container in containers):
            assert rights["readOnlyRootFilesystem"] and rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["allowPrivilegeEscalation"] is False
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == mounted
    assert [mount["readOnly"] for mount in CONTAINER["volumeMounts"] if mount["name"] == "models"] == [True]


def test_a_server_has_time_to_answer_what_it_has_taken_before_it_is_killed() -> None:
    (exit_s,) = (int(flag.partition("=")[2]) for flag in CONTAINER["args"] if flag.startswith("--exit-timeout"))
    waits_s = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > exit_s + waits_s
    assert RESOURCES["base/PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert RESOURCES["scaling/ScaledObject"]["spec"]["minReplicaCount"] > 1


def test_the_scaling_is_told_by_a_prometheus_that_may_ask_the_servers() -> None:
    """KEDA takes a fallback only if triggers are AverageValue, and an empty answer for 0 unless it is told not to."""
    scaling, policy = RESOURCES["scaling/ScaledObject"]["spec"], RESOURCES["base/NetworkPolicy"]["spec"]
    (scraper,) = next(rule["from"] for rule in policy["ingress"] if rule["ports"] == [{"port": "metrics"}])
    namespace = scraper["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    for trigger in scaling["triggers"]:
        assert not scaling.get("fallback") or trigger["metricType"] == "AverageValue"
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert re.fullmatch(rf"http://[\w-]+\.{namespace}:\d+", trigger["metadata"]["serverAddress"])


def test_what_the_repository_ignores_comes_into_no_image() -> None:
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if not line.startswith("#")]
    ignored = {line.strip("/") if "/" in line.rstrip("/") else f"**/{line.rstrip('/')}" for line in lines}
    assert ignored | {".git"} <= {*(ROOT / ".dockerignore").read_text().splitlines()}


def test_what_one_resource_names_another_one_has() -> None:
    kustomizations = {path.parent: yaml.safe_load(path.read_text()) for path in FILES if path.stem == "kustomization"}
    for folder, one in kustomizations.items():
        for name in [*one.get("resources", []), *one.get("components", [])]:
            assert (folder / name).is_file() or (folder / name / "kustomization.yml").is_file(), name
    labels = SERVERS["template"]["metadata"]["labels"]
    service = RESOURCES["base/Service"]
    selectors = [
        SERVERS["selector"], RESOURCES["base/PodDisruptionBudget"]["spec"]["selector"],
        RESOURCES["base/NetworkPolicy"]["spec"]["podSelector"], {"matchLabels": service["spec"]["selector"]},
    ]  # fmt: skip
    assert all(selector["matchLabels"] == labels for selector in selectors)
    assert RESOURCES["scaling/ServiceMonitor"]["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    ports = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    scaled = RESOURCES["scaling/ScaledObject"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("StatefulSet", RESOURCES["base/StatefulSet"]["metadata"]["name"])
    (made,) = RESOURCES["base/Kustomization"]["configMapGenerator"]
    assert {value.partition("=")[0] for value in made["literals"]} == {
        variable["valueFrom"]["configMapKeyRef"]["key"] for variable in MODEL["env"]
    }
    secrets = [one["valueFrom"]["secretKeyRef"]["name"] for one in CONTAINER["env"]]
    example = (DEPLOY / "kubernetes/example/kustomization.yml").read_text()
    for secret in (*secrets, *(one["secretRef"]["name"] for one in MODEL["envFrom"])):
        assert f"create secret generic {secret} " in example


def test_the_model_that_is_fetched_is_the_one_that_triton_serves(tmp_path: Path) -> None:
    """By the init container's own command, with its placeholders filled in."""
    source = tmp_path / "source/ranker"
    source.mkdir(parents=True)
    (source / "config.pbtxt").touch()
    digest = store.publish(source.parent, str(tmp_path / "store"))
    python, module, name, *arguments = MODEL["args"]
    assert (python, module, name) == ("python3", "-m", "engines.store")
    served = next(flag.partition("=")[2] for flag in CONTAINER["args"] if flag.startswith("--model-repository="))
    values = {"$(MODEL_ADDRESS)": str(tmp_path / "store"), "$(MODEL_DIGEST)": digest, served: str(tmp_path / "served")}
    for placeholder, value in values.items():
        assert any(placeholder in argument for argument in arguments), placeholder
        arguments = [argument.replace(placeholder, value) for argument in arguments]
    assert store.main(arguments) == 0
    assert (tmp_path / "served/ranker/config.pbtxt").is_file()


@pytest.mark.parametrize("module", ["client.probe", "engines.store"])
def test_the_image_has_all_that_its_commands_import(module: str) -> None:
    lines = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    copied = [ROOT / name for line in lines for name in line.split()]
    for source in (source_of(name) for name in {module, module.partition(".")[0], *reached_from(module)}):
        assert not source.exists() or any(source.is_relative_to(path) for path in copied), source


def test_the_job_trains_with_flags_that_the_trainer_has(capsys: pytest.CaptureFixture[str]) -> None:
    torchrun, module, name, *flags = TRAINER["command"]
    assert (torchrun, module, name) == ("torchrun", "-m", "trainer.distill")
    with pytest.raises(SystemExit):
        distill.main(["--help"])
    known = capsys.readouterr().out
    assert [flag for flag in flags if flag.partition("=")[0] not in known] == []


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
