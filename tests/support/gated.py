"""A served repository whose engine stands still until a test lets it go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import eventually

ENGINE = '''
import time
from pathlib import Path

import numpy as np

from .openvino_engine import OpenVinoEngine

GATE = Path({gate!r})


class GatedEngine(OpenVinoEngine):
    """The engine, each call of which waits for a file, and breaks if there is another."""

    def infer(self, rows):
        (GATE / "entered").touch()
        with (GATE / "calls").open("a") as calls:
            print(*np.unique(rows[0]), file=calls)
        while not (GATE / "open").exists():
            time.sleep(0.01)
        if (GATE / "broken").exists():
            raise RuntimeError("the engine broke")
        return super().infer(rows)
'''


@dataclass(frozen=True)
class Gate:
    """The engine's calls wait for this gate, which is open at first for the warm-up."""

    folder: Path

    @property
    def entered(self) -> Path:
        """There once a call has begun since the gate was closed."""
        return self.folder / "entered"

    @property
    def broken(self) -> Path:
        """With it, every call fails."""
        return self.folder / "broken"

    def close(self) -> None:
        (self.folder / "open").unlink()
        self.entered.unlink(missing_ok=True)
        (self.folder / "calls").unlink(missing_ok=True)

    def open(self) -> None:
        (self.folder / "open").touch()

    def wait(self) -> None:
        """Wait until a call stands at the gate."""
        eventually(self.entered.exists)

    def calls(self) -> list[set[int]]:
        """The token ids of each call since the gate was closed."""
        return [{int(word) for word in line.split()} for line in (self.folder / "calls").read_text().splitlines()]


def gated(repository: Path, root: Path, rows_per_call: int = 4) -> tuple[Path, Gate]:
    """A copy of the repository in ``root`` with such an engine, and its gate."""
    copy, gate = root / "model_repository", Gate(root / "gate")
    shutil.copytree(repository, copy)
    gate.folder.mkdir()
    gate.open()
    (copy / "student/runtime/gated_engine.py").write_text(ENGINE.format(gate=str(gate.folder)))
    manifest = copy / "student/1/manifest.json"
    changed = {"served_by": "gated_engine.GatedEngine", "rows_per_call": rows_per_call}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changed}))
    return copy, gate
