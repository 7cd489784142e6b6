"""Compile a checkpoint into a new version of the student that Triton serves, or of the teacher.

    python build_engines.py --checkpoint runs/student --data dev.jsonl --calibration log.jsonl
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine openvino --precision bf16
    python build_engines.py --checkpoint runs/student --data dev.jsonl --engine tensorrt --precision fp16
    python build_engines.py --teacher --checkpoint runs/teacher --data dev.jsonl --engine tensorrt --precision bf16

The checkpoint becomes one graph, and the graph an engine. The engine is installed only if it scores
the pairs of ``--data`` as the checkpoint does in float32 (exit code 1 if not; 2 for bad input). Without ``--engine``
a processor gets the fastest of the engines that it has units for.
"""

from __future__ import annotations

import engines  # noqa: F401  # isort: skip  # before any library: it chooses how threads wait
import sys
from collections.abc import Sequence

from engines.build import build_version
from engines.job import BuildArguments
from trainer.command import command, parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Exit code 0, 1 for an engine that the gate refuses, 2 for bad input and where auto finds none that passes."""
    (arguments,) = parse(argv, BuildArguments)
    build_version(arguments)


if __name__ == "__main__":
    sys.exit(main())
