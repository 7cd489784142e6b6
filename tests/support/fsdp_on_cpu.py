"""Runs a module under FSDP without a GPU: ``accelerate launch ... tests/support/fsdp_on_cpu.py trainer.rank_sft ...``.

Accelerate lets FSDP follow from a kind of GPU; here it is told that CPU processes with gloo are such a
kind. Everything else is its own code and PyTorch's: ``fully_shard`` knows CPUs.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from accelerate.state import DistributedType, PartialState


def main() -> None:
    def prepare_backend(*given: Any, **settings: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = prepare_backend
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
