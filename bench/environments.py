"""An environment of its own for each peer, made once and again whenever its requirements change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import torch

from client.errors import DisRankerError

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


class BenchError(DisRankerError):
    """An environment cannot be made, or a worker failed. The message ends with the last line that it printed."""


def interpreter(requirements: Path, root: Path, shared_versions: bool = True) -> Path:
    """The Python of ``root/<name of the requirements>``, which holds what they pin, and our own torch if they name it.

    ``shared_versions``: what we share has the version of constraints.txt on both sides.
    """
    peer = requirements.stem
    constraints = [CONSTRAINTS] if shared_versions else []
    python = root / peer / "bin" / "python"
    pinned = [path.read_bytes() for path in (requirements, *constraints)]
    wanted = hashlib.sha256(b"\n".join([*pinned, str(torch.__version__).encode()])).hexdigest()
    done = root / peer / ".installed"
    if done.exists() and done.read_text(encoding="ascii") == wanted:
        return python
    print(f"making the environment of {peer} in {root / peer}", file=sys.stderr)
    _run([sys.executable, "-m", "venv", "--clear", str(root / peer)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if "torch" in requirements.read_text(encoding="utf-8").splitlines():
        _install_torch(pip)
    flags = [word for path in constraints for word in ("--constraint", str(path))]
    _run([*pip, *flags, "--requirement", str(requirements)])
    done.write_text(wanted, encoding="ascii")
    return python


def _install_torch(pip: list[str]) -> None:
    """Our own build: where that is the CPU's, its index is asked only if the usual one has no such build."""
    release = f"torch=={torch.__version__}"
    if "+cpu" not in release:
        _run([*pip, release.partition("+")[0]])
        return
    try:
        _run([*pip, release])
    except BenchError:
        _run([*pip, release, "--index-url", CPU_WHEELS])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
