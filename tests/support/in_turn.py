"""Runs commands of the trainer one after the other in this process, which may be one of several: a start costs more
than a tiny training.

    python -m tests.support.in_turn COMMANDS.json

``COMMANDS.json`` lists them, each a list of the command's name and its flags.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> int:
    for command, *flags in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if code := importlib.import_module(f"trainer.{command}").main(flags):
            print(f"{command} ended with {code}", file=sys.stderr)
            return int(code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
