"""An environment of its own for each peer, made once, and again whenever its requirements change."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from client.errors import DisRankerError

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


class BenchError(DisRankerError):
    """An environment cannot be made, or a worker failed. The message ends with the last line that it printed."""


def interpreter(requirements: Path, root: Path, shared_versions: bool = True) -> Path:
    """The Python of the environment ``root/<name of the requirements>``, with our own torch if they name it.

    With ``shared_versions`` the libraries that both sides use have the version of constraints.txt on both.
    """
    peer = requirements.stem
    constraints = [CONSTRAINTS] if shared_versions else []
    python = root / peer / "bin" / "python"
    pinned = [path.read_bytes() for path in (requirements, *constraints)]
    wanted = hashlib.sha256(b"\n".join([*pinned, str(torch.__version__).encode()])).hexdigest()
    done = root / peer / ".installed"
    if done.exists() and done.read_text(encoding="ascii") == wanted:
        return python
    if (root / peer).exists() and not (root / peer / "pyvenv.cfg").is_file():
        raise BenchError(f"--environments {root}: {root / peer} is not a virtual environment: give another folder")
    print(f"making the environment of {peer} in {root / peer}", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(root / peer)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if "torch" in requirements.read_text(encoding="utf-8").splitlines():
        _install_torch(pip)
    flags = [word for path in constraints for word in ("--constraint", str(path))]
    _run([*pip, *flags, "--requirement", str(requirements)])
    done.write_text(wanted, encoding="ascii")
    return python


def worker_variables(threads: int) -> dict[str, str]:
    """The variables of a worker's process: so many threads, nothing from the network, our own records importable."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0"}  # fmt: skip


def _install_torch(pip: list[str]) -> None:
    """Install our own build of torch. PyTorch's index is asked only if the usual one has no such CPU build."""
    release = f"torch=={torch.__version__}"
    if "+cpu" not in release:
        _run([*pip, release.partition("+")[0]])
        return
    try:
        _run([*pip, release])
    except BenchError:
        _run([*pip, release, "--index-url", CPU_WHEELS])


def run_module(module: str, *flags: str) -> str:
    """The output of a command of ours, in a process of its own."""
    return _run([sys.executable, "-m", module, *flags]).strip()


def run_here(module: str, *flags: str) -> None:
    """Run a command of ours in this process, which has imported the most that it needs."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = importlib.import_module(module).main(flags)
    if code:
        raise BenchError(f"{module}: {last_line(said.getvalue())}")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{shlex.join(command)}: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
