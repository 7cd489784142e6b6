"""The command ``tritonserver`` starts NVIDIA Triton out of the nvidia-pytriton wheel, on a machine without a container.

    tritonserver --model-repository model_repository --model-config-name cpu

Where PATH has a real ``tritonserver``, the command is that one. Otherwise it takes Triton's own flags,
``--hang-timeout-secs``, and ``--verbose`` for all of Triton's log. It has only the Python backend and ensembles, and
listens only on loopback. Model control, shared memory, traces and logging need the key in DISRANKER_ADMIN_KEY. Triton's
container serves other machines and a GPU's engines. A Triton that dies, loses one of its processes or hangs is started
again (supervisor.py).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from embedded_triton.announcement import loading, serving
from embedded_triton.checks import LOOPBACK, PORTS, address_of, asked_at, check, ranker_of, seconds, values, without
from embedded_triton.processes import PREFIX
from embedded_triton.wheel import EmbeddedTritonError, Wheel, backend_directory, find_wheel

HANG = "--hang-timeout-secs"
VERBOSE = "--verbose"
LOGS = ("--log-verbose", "--log-format")  # whoever sets one wants to see it all
# An engine call of a model that a processor serves takes seconds at most, and a request of one document waits for one.
HANG_S = 60.0
EXIT_S = 30.0  # Triton's own default of --exit-timeout-secs
DEFAULTS = {
    **{f"--{endpoint}-address": LOOPBACK for endpoint in PORTS},
    # There is no GPU for this build, and complaints about its absence would open the log.
    "--allow-gpu-metrics": "false",
    "--pinned-memory-pool-byte-size": "0",
}
# Only whoever runs the server may change its models, and read and write memory and files of its machine.
CLOSED = "model-repository,shared-memory,trace,logging"
ELF = b"\x7fELF"  # how a program begins that is no script
ADMIN_KEY = "DISRANKER_ADMIN_KEY"  # the environment variable with the key to them; without it nobody has one


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 once asked to stop, Triton's code if its first start fails, 1 if each start does, 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and (real := real_server()):
        print(f"tritonserver: this is {real}; python -m embedded_triton starts the embedded one", file=sys.stderr)
        os.execv(real, [real, *_tritons(arguments)])
    try:
        wheel = find_wheel()
        if "--help" in arguments:
            os.execve(wheel.server, [str(wheel.server), *arguments], environment(wheel))
        check(arguments)
        return _supervised(arguments, wheel)
    except (EmbeddedTritonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def real_server() -> str:
    """The first tritonserver on PATH that is no script, as NVIDIA's container has one; "" for none."""
    for server in (Path(folder) / "tritonserver" for folder in os.get_exec_path()):
        with suppress(OSError), server.open("rb") as file:
            if file.read(len(ELF)) == ELF and os.access(server, os.X_OK):
                return str(server)
    return ""


def _tritons(arguments: Sequence[str]) -> list[str]:
    """The arguments less the flags that Triton does not know."""
    return [argument for argument in without(arguments, HANG) if argument != VERBOSE]


def _supervised(arguments: list[str], wheel: Wheel) -> int:
    from embedded_triton.supervisor import Launch, supervise  # needs the packages that find_wheel has found

    triton = _tritons(arguments)
    launch = Launch(
        command=(str(wheel.server), *defaults(triton, wheel), *triton),
        environment=environment(wheel),
        addresses=tuple(filter(None, (address_of(arguments, endpoint) for endpoint in PORTS))),
        grpc=asked_at(arguments),
        ranker=ranker_of(arguments),
        hang_s=seconds(arguments, HANG, HANG_S),
        exit_s=seconds(arguments, "--exit-timeout-secs", EXIT_S),
        verbose=VERBOSE in arguments or any(values(triton, name) for name in LOGS),
        loads=loading(arguments),
        serves=serving(arguments),
    )
    return supervise(launch)


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
        missing.append(f"--backend-directory={backend_directory(wheel)}")
    # Every configuration here is complete. To look for what is missing, Triton would start each Python model twice.
    missing.append("--disable-auto-complete-config")
    missing.append(f"--backend-config=python,shm-region-prefix-name={PREFIX}")
    return missing
