"""The command ``tritonserver`` starts NVIDIA Triton out of the nvidia-pytriton wheel, on a machine without a container.

    tritonserver --model-repository model_repository --model-config-name cpu

It takes Triton's own flags, and its exit code is Triton's, or 2 if Triton cannot start. It has only
the Python backend and ensembles, and listens only on loopback. Model control, shared memory, traces and logging need
the key in DISRANKER_ADMIN_KEY. Triton's container serves other machines and a GPU's engines.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import ipaddress
import os
import re
import secrets
import signal
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_repository.student.served import served_versions

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_LIBRARY = f"libpython{VERSION}.so.1.0"
LOOPBACK = "127.0.0.1"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REGIONS = f"tritonserver-{os.getpid()}-"  # shared memory of the Python backend, by its names
DEFAULTS = {
    **{f"--{endpoint}-address": LOOPBACK for endpoint in PORTS},
    # There is no GPU for this build, and complaints about its absence would open the log.
    "--allow-gpu-metrics": "false",
    "--pinned-memory-pool-byte-size": "0",
}
# What only whoever runs the server may do: change its models, read and write memory and files of its machine.
CLOSED = "model-repository,shared-memory,trace,logging"
ADMIN_KEY = "DISRANKER_ADMIN_KEY"  # the environment variable with the key to them; without it nobody has one
BUILD = "python build_engines.py --engine openvino --precision bf16 --checkpoint C --data QUERIES --model_repository"


class EmbeddedTritonError(Exception):
    """The server cannot start; the message says how to mend it."""


@dataclass(frozen=True)
class Wheel:
    """The paths of the installed nvidia-pytriton's parts, and of the Python library that its stub loads."""

    server: Path
    stub: Path
    backend: Path
    libraries: Path
    python_library: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Triton's exit code (128 and the signal's number if one killed it), or 2 if it could not be started."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        wheel = find_wheel()
        if "--help" not in arguments:
            check(arguments)
            arguments = [*defaults(arguments, wheel), *arguments]
        return run([str(wheel.server), *arguments], environment(wheel))
    except (EmbeddedTritonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run Triton, hand it the signals that end this process, and let nothing of it stay behind.

    If Triton is stopped while it loads, it leaves its Python processes and their shared memory behind. This process
    removes them, and therefore does not become Triton.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP, signal.SIGCHLD})
    triton = os.posix_spawn(command[0], command, environment, setpgroup=0, setsigmask=(), setsigdef=STOP)
    ended = status = 0
    while not ended:
        received = signal.sigwait({*STOP, signal.SIGCHLD})
        if received == signal.SIGCHLD:
            ended, status = os.waitpid(triton, os.WNOHANG)
        else:
            os.kill(triton, signal.SIGTERM)  # whatever came: Triton did not always end on SIGINT
    with suppress(ProcessLookupError):
        os.killpg(triton, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{REGIONS}*"):
        region.unlink(missing_ok=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def find_wheel() -> Wheel:
    """Raises EmbeddedTritonError for a Python or an environment that the server cannot run in."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedTritonError("the embedded Triton is not installed: pip install 'disranker[server]'")
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    stub = triton / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise EmbeddedTritonError(f"nvidia-pytriton has no Python backend for Python {VERSION}: use Python 3.11")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise EmbeddedTritonError(f"Triton's Python backend garbles text under numpy {numpy}: pip install 'numpy<2'")
    return Wheel(
        triton / "bin/tritonserver",
        stub,
        triton / "backends/python",
        package.parent / "nvidia_pytriton.libs",
        _python_library(),
    )


def _python_library() -> Path:
    folders = [Path(sys.base_prefix) / "lib", Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]
    folders += [folder / (sysconfig.get_config_var("MULTIARCH") or "") for folder in folders]
    for folder in folders:
        if (folder / PYTHON_LIBRARY).is_file():
            return folder / PYTHON_LIBRARY
    raise EmbeddedTritonError(
        f"this Python has no {PYTHON_LIBRARY}, which Triton's Python backend loads: install it "
        f"(Debian: apt-get install libpython{VERSION}; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def environment(wheel: Wheel) -> dict[str, str]:
    """This process's variables, and those by which the backend finds its libraries and this Python's packages."""
    folders = [str(wheel.libraries), str(wheel.python_library.parent), os.environ.get("LD_LIBRARY_PATH")]
    return {
        # The tokenizer would take as many threads as there are cores, and from an engine that waits for its slowest.
        "RAYON_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 4)),
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)),
        # The backend's Python takes its prefix from the first python3 on the path.
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH") or os.defpath]),
    }


def defaults(arguments: Sequence[str], wheel: Wheel) -> list[str]:
    """The flags that this server needs and that were not given."""
    closed = f"{CLOSED}:admin-key={os.environ.get(ADMIN_KEY) or secrets.token_hex(16)}"
    wanted = {**DEFAULTS, "--grpc-restricted-protocol": closed, "--http-restricted-api": closed}
    missing = [f"{name}={value}" for name, value in wanted.items() if not values(arguments, name)]
    if not values(arguments, "--backend-directory"):
        missing.append(f"--backend-directory={_backend_directory(wheel)}")
    missing.append(f"--backend-config=python,shm-region-prefix-name={REGIONS}")
    return missing


def _backend_directory(wheel: Wheel) -> Path:
    """Links to the backend and its stub side by side, as Triton expects them; the wheel has a stub per Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    installation = hashlib.sha256(os.fsencode(wheel.stub)).hexdigest()[:12]
    folder = cache / "disranker" / f"triton-{installation}" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for target in (*wheel.backend.glob("*.*"), wheel.stub):
        if not (folder / target.name).exists():
            partial = folder / f".{target.name}.{os.getpid()}"
            partial.symlink_to(target)
            partial.replace(folder / target.name)  # another server may be starting
    return folder.parent


def check(arguments: Sequence[str]) -> None:
    """Raises EmbeddedTritonError for what would keep Triton from starting, or open it to other machines."""
    for endpoint, default in PORTS.items():
        _check_endpoint(arguments, endpoint, default)
    repositories = values(arguments, "--model-repository") + values(arguments, "--model-store")
    if not repositories:
        raise EmbeddedTritonError("--model-repository is needed: the directory of the models, such as model_repository")
    config_name = (values(arguments, "--model-config-name") or [""])[-1]
    for repository in map(Path, repositories):
        if not repository.is_dir():
            raise EmbeddedTritonError(f"--model-repository {repository}: no such directory")
        for model in sorted(path.parent for path in repository.glob("*/config.pbtxt")):
            _check_model(model, config_name)


def _check_endpoint(arguments: Sequence[str], endpoint: str, default: int) -> None:
    address, local = (values(arguments, f"--{endpoint}-address") or [LOOPBACK])[-1], False
    with suppress(ValueError):  # a name is no address
        local = address == "localhost" or ipaddress.ip_address(address).is_loopback
    if not local:
        raise EmbeddedTritonError(
            f"--{endpoint}-address {address}: the embedded server has no access control and stays on loopback; "
            "serve other machines from Triton's container"
        )
    allowed = (values(arguments, f"--allow-{endpoint}") or ["true"])[-1].lower() in ("true", "1")
    port = (values(arguments, f"--{endpoint}-port") or [str(default)])[-1]
    if not allowed or not port.isdigit():
        return  # what is no number, Triton refuses itself
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, int(port)))
        except (OSError, OverflowError) as error:
            raise EmbeddedTritonError(
                f"port {port} of {address} cannot be used ({getattr(error, 'strerror', error)}): stop what listens "
                f"there, or choose another port with --{endpoint}-port"
            ) from error


def _check_model(model: Path, config_name: str) -> None:
    chosen = model / "configs" / f"{config_name}.pbtxt"
    config = chosen if config_name and chosen.is_file() else model / "config.pbtxt"
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
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if len(flag) > 2 and flag.startswith("--") and name.startswith(flag):
            given.append(value if equals else following)
    return given


if __name__ == "__main__":
    sys.exit(main())
