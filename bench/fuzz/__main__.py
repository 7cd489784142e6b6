"""Send a server and a gateway requests that nobody meant to send, and see that nothing but an error comes of them.

    python -m bench.fuzz --model_repository model_repository --cases 100000

Beside each of them a good request is under way, whose scores must stay the same. Exit code 1, with the smallest case
that was found, if a process dies, if a good request fails or scores otherwise, or if an answer holds another's text,
a traceback or a path.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.children import free_ports, healthy, serving, started
from bench.fuzz.run import SURFACES, fuzz
from bench.fuzz.target import Target
from client.command import command
from model_repository.tokenizer.pair_encoding import PairEncoder


@command
def main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    repository, gateway = Path(arguments.model_repository), free_ports("gateway")["gateway"]
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as logs,
        serving(repository, Path(logs) / "triton") as (child, ports),
        started(_gateway(gateway, ports["grpc"]), Path(logs) / "gateway") as web,
    ):
        web.wait_until(lambda: healthy(gateway, "/health"))
        triton_url, gateway_url = (f"http://127.0.0.1:{port}" for port in (ports["http"], gateway))
        encoder = PairEncoder.load(repository / "tokenizer")
        server = f"127.0.0.1:{ports['grpc']}"
        with Target(child.process.pid, server, triton_url, gateway_url, encoder, arguments.tolerance) as target:
            return _report(target, arguments.cases, arguments.seed)


def _gateway(port: int, server: int) -> list[str]:
    return [sys.executable, "-m", "client.gateway", "--servers", f"127.0.0.1:{server}", "--port", str(port)]


def _report(target: Target, cases: int, seed: int) -> int:
    for surface, share in SURFACES.items():
        begun, count = time.monotonic(), max(1, round(cases * share))
        try:
            fuzz(target, surface, count, seed)
        except AssertionError as error:
            print(f"{surface}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
            return 1
        print(f"{surface:10} {count:8,} cases {time.monotonic() - begun:8.1f} s, nothing died, leaked or changed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_repository", default="model_repository", help="with a student for processors")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="which cases are drawn")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of scores by what shares a call, logits")
    return parser


if __name__ == "__main__":
    sys.exit(main())
