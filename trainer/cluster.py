"""A Ray cluster: how a command joins one, and what its workers say of faults. It needs no PyTorch."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.errors import DisRankerError
from trainer.addresses import shown
from trainer.storage import fetched

LOCAL = "local"
TOKEN = "RAY_AUTH_TOKEN"
OWN_TOKEN = secrets.token_hex()  # Ray reads it once in a process
# Nothing is reported to anyone; workers of this machine get their share of it as other processes do; and Ray's own
# processes say nothing beside the bar, what concerns the work is raised.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
OWN: dict[str, Any] = {"include_dashboard": False}  # of a cluster that ends with the command

Row = Mapping[str, Any]


class ClusterError(DisRankerError):
    """A Ray cluster that cannot be asked for or joined, or whose nodes do not see the same files."""


@dataclass(kw_only=True)
class ClusterArguments:
    """The cluster, if there is one."""

    ray: str | None = field(
        default=None,
        metadata={
            "nargs": "?", "const": LOCAL,
            "help": "Work on a Ray cluster: its address, auto for the one that RAY_ADDRESS or this machine has, or "
            "nothing for workers of this machine alone.",
        },
    )  # fmt: skip
    ray_workers: int | None = field(
        default=None,
        metadata={
            "help": "Workers on it; by default one for each core; for a teacher one for each GPU, if there is any, and "
            "for --triton one."
        },
    )

    def __post_init__(self) -> None:
        if self.ray_workers is not None and (self.ray is None or self.ray_workers < 1):
            raise ClusterError("--ray_workers must be at least 1, and needs --ray")


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """The module ray, connected. Raises ClusterError where Ray is not installed, and for no cluster there."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError("--ray needs Ray: pip install -e '.[cluster]'") from error
    # Without one, Ray writes a token into the home directory, where commands that begin at once overwrite each other's.
    own_token = address == LOCAL and not {TOKEN, "RAY_AUTH_TOKEN_PATH"} & {*os.environ}
    if own_token:
        os.environ[TOKEN] = OWN_TOKEN
    try:
        ray.init(address, **SILENT, **(OWN if address == LOCAL else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"--ray {address}: {' '.join(str(error).split())}") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    except ray.exceptions.RayTaskError:  # a bug
        raise
    except ray.exceptions.RayError as error:
        last = str(error).strip().rpartition("\n")[2]
        raise ClusterError(f"--ray {address}: {last}; the same command goes on with what is missing") from error
    finally:
        ray.shutdown()
        if own_token:
            del os.environ[TOKEN]


def cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def anywhere(name: str) -> str:
    """The same for workers, which begin in a working directory of Ray's; addresses and names of a hub stay."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A worker's answer, or the error of ours instead of it, as a row that any machine can read."""
    try:
        return {**work(), "error": ""}
    except DisRankerError as error:
        return {"error": shown(str(error)), "exit_code": error.exit_code}
    except ImportError as error:  # of a package that this node lacks
        return {"error": f"{socket.gethostname()}: {error}", "exit_code": ClusterError.exit_code}


def checked(row: Row) -> Row:
    """The row itself. Raises DisRankerError, with text and exit code, for the error that it holds."""
    if row["error"]:
        raised = DisRankerError(row["error"])
        raised.exit_code = int(row["exit_code"])
        raise raised
    return row


def seen(path: Path, worker: str, flag: str) -> Path:
    """The file that a worker has made, brought here if it is in a store. Raises ClusterError if it is not seen here."""
    fetched(shown(str(path)), ())
    if not path.is_file():
        raise ClusterError(f"{path}: {worker} wrote it and it is not seen here: all nodes need {flag}")
    return path
