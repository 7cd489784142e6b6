"""Serve any reranker: its engine is built for this machine, once, and a server and a gateway are started.

    python -m engines.serve cross-encoder/ms-marco-MiniLM-L6-v2
    python -m engines.serve runs/demo/student --data judged.jsonl --calibration log.jsonl --port 8080

The model is a hub id, a path or an address (s3://) of an encoder with one logit, of the hub or of ours. Ctrl-C stops
all of it. The next start takes what is built already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from bench.children import Child, end_with_parent, free_ports, healthy, started, triton
from client.command import command
from engines.records import EngineError
from engines.table import PRECISIONS
from model_repository.student.digests import sha256
from model_repository.student.runtime.graphs import cores
from model_repository.student.served import served_version
from trainer.addresses import naming_addresses
from trainer.data.records import IR_DATASETS, files_in
from trainer.storage import localised

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disranker" / "served"
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a checkpoint, here or of the hub
SERVER_CODE = Path(__file__).parents[1] / "model_repository"  # each build has a copy of it
BUILT = "student/*/model.py"  # in a version, not the project's own
PACKAGES = ("disranker", "openvino", "onnxruntime")
KEYS, WARNS = "key is needed", "no key is needed: "  # of the gateway's line on who may ask
LOOK_S = 0.5


@command
def main(argv: Sequence[str] | None = None) -> None:
    with naming_addresses():
        _build_and_serve(_parser().parse_args(argv))


def _build_and_serve(arguments: argparse.Namespace) -> None:
    if "://" in arguments.folder:
        raise EngineError(f"--folder {arguments.folder}: what is served lies in a folder, not at an address")
    if arguments.calibration and not arguments.data:
        raise EngineError("--calibration is for int8, which is judged by labels: give judged --data too")
    check_address(arguments.host, arguments.port)
    arguments.model, arguments.key_file = localised([arguments.model, arguments.key_file])
    arguments.data, arguments.calibration = localised(arguments.data), localised(arguments.calibration)
    if arguments.key_file and not Path(arguments.key_file).exists():
        raise EngineError(f"--key_file {arguments.key_file}: no such file")
    model = located(arguments.model)
    folder = Path(arguments.folder) / f"{named(arguments.model)}-{key_of(model, arguments)}"
    repository = folder / "model_repository"
    if served_version(repository / "student"):
        print(f"{repository} is built already")
    else:
        from engines.published import build  # a server that is built needs no PyTorch, which takes seconds to import

        build(model, repository, arguments.data, arguments.calibration, arguments.precision)
    with suppress(KeyboardInterrupt):
        serve(repository, named(arguments.model), gateway_flags(arguments))


def located(model: str) -> Path:
    """The directory of a path or a hub id, whose files are fetched. Raises EngineError where there is none."""
    if (path := Path(model)).exists() or model.count("/") != 1:
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=[*WANTED]))
    except Exception as error:  # of many kinds: no such model, no network, no right to it
        reason = str(error).strip().partition("\n")[0]
        raise EngineError(f"{model}: neither a directory here nor a model of the hub: {reason}") from error


def named(model: str) -> str:
    """The last part of a path or hub id, as clients call the model."""
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in Path(model).absolute().name)


def key_of(model: Path, arguments: argparse.Namespace) -> str:
    """A hash of all that decides what is built: the checkpoint, the data, the flags, this project with its libraries,
    and the processor."""
    decides = [
        _digests(path for pattern in WANTED for path in sorted(model.glob(pattern))),
        _digests(path for source in arguments.data for path in files_in(source)),
        _digests(path for source in arguments.calibration for path in files_in(source)),
        _digests(path for path in sorted(SERVER_CODE.rglob("*.py")) if not path.match(BUILT)),
        arguments.precision,
        [_version(package) for package in PACKAGES],
        _units(),
        cores(),
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def _digests(files: Iterable[str | Path]) -> list[str]:
    try:
        return [str(file) if str(file).startswith(IR_DATASETS) else sha256(Path(file)) for file in files]
    except OSError as error:
        raise EngineError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _units() -> list[str]:
    """The lines that say what the processor has units for, one for each kind of core."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return sorted({line for line in lines if line.startswith("flags")})


def check_address(host: str, port: int) -> None:
    """Raises EngineError, before a long build, for an address that the gateway could not have."""
    if not 0 <= port < 2**16:
        raise EngineError(f"--port must be at most 65535, and 0 for a free one, not {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        message = f"cannot listen at {host}:{port}: {error.strerror}; choose another --host or --port"
        raise EngineError(message) from error


def gateway_flags(arguments: argparse.Namespace) -> list[str]:
    flags = ["--host", arguments.host, "--port", str(arguments.port)]
    return [*flags, *["--key_file", arguments.key_file] * bool(arguments.key_file)]


def serve(repository: Path, name: str, flags: Sequence[str]) -> None:
    """Serve until a signal ends it, the gateway with these flags. Raises StartError where a server does not start, or
    ends by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running(repository, name, flags) as children:
        _announce(children[-1].log.read_text(encoding="utf-8").splitlines())
        while all(child.process.poll() is None for child in children):
            time.sleep(LOOK_S)
        next(child for child in children if child.process.poll() is not None).wait_until(lambda: False)


@contextmanager
def running(repository: Path, name: str, flags: Sequence[str]) -> Iterator[tuple[Child, Child]]:
    """The ranking server on free ports, and the gateway in front of it, both ready; their logs are beside the
    repository."""
    ports = free_ports("http", "grpc", "metrics")
    server_log, gateway_log = (repository.with_name(f"{part}.log") for part in ("server", "gateway"))
    gateway = [sys.executable, "-m", "client.gateway", *flags, "--log_level", "info",
               "--models", f"{name}=ranker@127.0.0.1:{ports['grpc']}"]  # fmt: skip
    with started(triton(repository, ports), server_log, before=end_with_parent) as server:
        server.wait_until(lambda: healthy(ports["http"]))
        with started(gateway, gateway_log, before=end_with_parent) as front:
            front.wait_until(lambda: KEYS in gateway_log.read_text(encoding="utf-8"))
            yield server, front


def _announce(said: Sequence[str]) -> None:
    """Print the gateway's own lines: where it serves, and before that a warning if others may ask without a key."""
    for line in said:
        if WARNS in line:
            print(line, file=sys.stderr)
    url = next(line for line in said if " serves " in line)
    print(f"{url}, a page and the rerank APIs; Ctrl-C ends it", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines.serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="hub id, or path or address of a checkpoint")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="judged queries for the gate; else texts of Python's documentation",
    )
    parser.add_argument(
        "--calibration", nargs="+", default=[], metavar="DATA", help="queries like the traffic's: int8 is tried too"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="", help="only this one; fp32 scores as the checkpoint does"
    )
    parser.add_argument("--host", default="127.0.0.1", help="of the gateway")
    parser.add_argument("--port", type=int, default=8080, help="of the gateway; 0 is a free one")
    parser.add_argument("--key_file", default="", help="of the gateway: only callers with one of these keys may ask")
    parser.add_argument("--folder", default=str(CACHE), help="what is built is kept here (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
