"""Reads Triton's flags, and finds what would keep it from starting before it is started."""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from embedded_triton.wheel import EmbeddedTritonError
from model_repository.student.served import served_versions

LOOPBACK = "127.0.0.1"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
TRUE = ("true", "1")
TLS = ("--grpc-use-ssl", "--grpc-use-ssl-mutual")
RANKERS = ("ranker", "teacher_ranker")
BUILD = "python build_engines.py --engine auto --checkpoint C --data QUERIES --model_repository"


def check(arguments: Sequence[str]) -> None:
    """Raises EmbeddedTritonError for what would keep Triton from starting, or open it to other machines."""
    for endpoint in PORTS:
        _check_endpoint(arguments, endpoint)
    repositories = repositories_of(arguments)
    if not repositories:
        raise EmbeddedTritonError("--model-repository is needed: the directory of the models, such as model_repository")
    for repository in repositories:
        if not repository.is_dir():
            raise EmbeddedTritonError(f"--model-repository {repository}: no such directory")
    for model, config in models_of(arguments):
        _check_model(model, config)


def repositories_of(arguments: Sequence[str]) -> list[Path]:
    return list(map(Path, values(arguments, "--model-repository") + values(arguments, "--model-store")))


def models_of(arguments: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Each model's folder, and the configuration of it that Triton will read."""
    config_name = (values(arguments, "--model-config-name") or [""])[-1]
    for repository in repositories_of(arguments):
        for model in sorted(path.parent for path in repository.glob("*/config.pbtxt")):
            chosen = model / "configs" / f"{config_name}.pbtxt"
            yield model, chosen if config_name and chosen.is_file() else model / "config.pbtxt"


def _check_endpoint(arguments: Sequence[str], endpoint: str) -> None:
    address, local = (values(arguments, f"--{endpoint}-address") or [LOOPBACK])[-1], False
    with suppress(ValueError):  # a name is no address
        local = address == "localhost" or ipaddress.ip_address(address).is_loopback
    if not local:
        raise EmbeddedTritonError(
            f"--{endpoint}-address {address}: the embedded server has no access control and stays on loopback; "
            "serve other machines from Triton's container"
        )
    opened = address_of(arguments, endpoint)
    if opened is None:
        return
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(opened)
        except (OSError, OverflowError) as error:
            raise EmbeddedTritonError(
                f"port {opened[1]} of {address} cannot be used ({getattr(error, 'strerror', error)}): stop what "
                f"listens there, or choose another port with --{endpoint}-port"
            ) from error


def address_of(arguments: Sequence[str], endpoint: str) -> tuple[str, int] | None:
    """Where Triton will listen; None for an endpoint that is off, or a port that is no number, which Triton refuses."""
    allowed = (values(arguments, f"--allow-{endpoint}") or ["true"])[-1].lower() in TRUE
    port = (values(arguments, f"--{endpoint}-port") or [str(PORTS[endpoint])])[-1]
    address = (values(arguments, f"--{endpoint}-address") or [LOOPBACK])[-1]
    return (address, int(port)) if allowed and port.isdigit() else None


def asked_at(arguments: Sequence[str]) -> str:
    """The gRPC endpoint as host:port; "" where it is off, or takes TLS only and a certificate would be needed."""
    address = address_of(arguments, "grpc")
    secure = any(value.lower() in TRUE for name in TLS for value in values(arguments, name))
    if address is None or secure:
        return ""
    return spelled(*address)


def spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ranker_of(arguments: Sequence[str]) -> str:
    """The ensemble of the repository that can be asked for a score; "" for none."""
    repositories = repositories_of(arguments)
    found = (name for name in RANKERS for folder in repositories if (folder / name / "config.pbtxt").is_file())
    return next(found, "")


def _check_model(model: Path, config: Path) -> None:
    versions = served_versions(model, config)
    if not versions:
        raise EmbeddedTritonError(f"the model {model.name!r} is not built yet: {BUILD} {model.parent}")
    text = config.read_text(encoding="utf-8")
    kind = re.search(r'^\s*(?:platform|backend)\s*:\s*"([^"]*)"', text, flags=re.MULTILINE)
    if kind is None or kind[1] == "ensemble":
        return
    if kind[1] != "python":
        mend = "--model-config-name cpu" if (model / "configs/cpu.pbtxt").is_file() else "Triton's container"
        raise EmbeddedTritonError(
            f"the model {model.name!r} is configured for {kind[1]}, which needs a GPU: use {mend}"
        )
    for served in (model / str(version) for version in versions):
        if not served.is_dir():
            mend = "choose another with python -m engines.versions use"
            raise EmbeddedTritonError(f"{config} names version {served.name}, which is not there: {mend}")
        if not (served / "model.py").is_file():
            raise EmbeddedTritonError(f"{served} was built for a GPU: {BUILD} ANOTHER_REPOSITORY, and serve that one")


def values(arguments: Sequence[str], name: str) -> list[str]:
    """The values of a flag, one for each time; Triton takes ``--flag value``, ``--flag=value`` and shortened names."""
    given = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        if len(flag) > 2 and flag.startswith("--") and name.startswith(flag):
            given.append(value if equals else following)
    return given


def seconds(arguments: Sequence[str], name: str, default: float) -> float:
    """The value of a flag of seconds. Raises EmbeddedTritonError for what is none."""
    given = (values(arguments, name) or [str(default)])[-1]
    with suppress(ValueError):
        if math.isfinite(number := float(given)) and number >= 0:
            return number
    raise EmbeddedTritonError(f"{name} must be 0 or more seconds, not {given!r}")


def without(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments less a flag of ours, which Triton does not know."""
    rest, following = list[str](), iter(arguments)
    for argument in following:
        if argument == name:
            next(following, None)
        elif not argument.startswith(f"{name}="):
            rest.append(argument)
    return rest
