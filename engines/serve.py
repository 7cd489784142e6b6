"""Serve any reranker: its engine is built for this machine, once, and a server and a gateway are started.

    python -m engines.serve cross-encoder/ms-marco-MiniLM-L6-v2
    python -m engines.serve runs/demo/student --data judged.jsonl --calibration log.jsonl --port 8080

The model is a hub id or a path of an encoder with one logit, of the hub or of ours. Ctrl-C stops all of it. The next
start takes what is built already.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.children import Child, free_ports, healthy, started, triton
from client.command import command
from engines.records import EngineError
from engines.table import PRECISIONS
from model_repository.student.digests import sha256
from model_repository.student.runtime.graphs import cores
from model_repository.student.served import served_version

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disranker" / "served"
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a repository of the hub
KEPT = ("config.json", "tokenizer*.json", "pair_encoding.json", "*.safetensors")  # what decides the scores
LOOK_S = 0.5


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.calibration and not arguments.data:
        raise EngineError("--calibration is for int8, which is judged by labels: give judged --data too")
    check_port(arguments.host, arguments.port)
    model = located(arguments.model)
    folder = Path(arguments.folder) / f"{named(arguments.model)}-{key_of(model, arguments)}"
    repository = folder / "model_repository"
    if served_version(repository / "student"):
        print(f"{repository} is built already")
    else:
        from engines.published import build  # a server that is built needs no PyTorch, which takes seconds to import

        build(model, repository, arguments.data, arguments.calibration, arguments.precision)
    with suppress(KeyboardInterrupt):
        serve(repository, named(arguments.model), arguments.host, arguments.port)


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
    """A hash of all that decides what is built: the checkpoint, the data, the flags and the cores."""
    kept = [path for pattern in KEPT for path in sorted(model.glob(pattern))]
    try:
        digests = [[sha256(Path(path)) for path in files] for files in (kept, arguments.data, arguments.calibration)]
    except OSError as error:
        raise EngineError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps([digests, arguments.precision, cores()]).encode()).hexdigest()[:12]


def check_port(host: str, port: int) -> None:
    """Raises EngineError, before a long build, for a port that the gateway could not have."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise EngineError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error


def serve(repository: Path, name: str, host: str, port: int) -> None:
    """Serve until a signal ends it. Raises StartError where a server does not start, or ends by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with running(repository, name, host, port) as children:
        print(f"http://{host}:{port} serves {name}, a page and the rerank APIs; Ctrl-C ends it", flush=True)
        while all(child.process.poll() is None for child in children):
            time.sleep(LOOK_S)
        next(child for child in children if child.process.poll() is not None).wait_until(lambda: False)


@contextmanager
def running(repository: Path, name: str, host: str, port: int) -> Iterator[tuple[Child, Child]]:
    """The ranking server on free ports, and the gateway in front of it, both ready; their logs are beside the
    repository."""
    ports = free_ports("http", "grpc", "metrics")
    server_log, gateway_log = (repository.with_name(f"{part}.log") for part in ("server", "gateway"))
    gateway = [sys.executable, "-m", "client.gateway", "--host", host, "--port", str(port),
               "--models", f"{name}=ranker@127.0.0.1:{ports['grpc']}"]  # fmt: skip
    with started(triton(repository, ports), server_log) as server:
        server.wait_until(lambda: healthy(ports["http"]))
        with started(gateway, gateway_log) as front:
            front.wait_until(lambda: "http://" in gateway_log.read_text(encoding="utf-8"))
            yield server, front


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines.serve", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="hub id, or path of a checkpoint")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="FILE", help="judged queries for the gate; else generated"
    )
    parser.add_argument(
        "--calibration", nargs="+", default=[], metavar="FILE", help="queries like the traffic's: int8 is tried too"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="", help="only this one; fp32 scores as the checkpoint does"
    )
    parser.add_argument("--host", default="127.0.0.1", help="of the gateway")
    parser.add_argument("--port", type=int, default=8080, help="of the gateway")
    parser.add_argument("--folder", default=str(CACHE), help="what is built is kept here (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
