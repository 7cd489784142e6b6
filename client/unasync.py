"""Make client/ranking.py, the client for threads, of client/asynchronous.py.

python client/unasync.py          # writes it
python client/unasync.py --check  # exit code 1 if it is not up to date
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("asynchronous.py")
TARGET = Path(__file__).with_name("ranking.py")
DOCSTRING = (
    '"""The client for any number of threads. Made of client/asynchronous.py by client/unasync.py: edit that one."""'
)
CHANGES = (
    (r'\A""".*?"""', DOCSTRING),
    (r"Iterable\[RankingRequest\] \| AsyncIterable\[RankingRequest\]", "Iterable[RankingRequest]"),
    (r"AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable,", "Callable, Iterable, Iterator,"),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncRankingClient\b", "RankingClient"),
    (r"tritonclient\.grpc\.aio", "tritonclient.grpc"),
    (r"\baclosing\b", "closing"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\b(?:async|await) ", ""),
    (r"\basync_", ""),
)


def without_asyncio(source: str) -> str:
    """The same for threads, formatted as the linter wants it."""
    for pattern, replacement in CHANGES:
        source = re.sub(pattern, replacement, source, flags=re.DOTALL)
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def main(argv: Sequence[str] | None = None) -> int:
    wanted = without_asyncio(SOURCE.read_text(encoding="utf-8"))
    if "--check" not in (sys.argv if argv is None else argv):
        TARGET.write_text(wanted, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != wanted:
        print(f"{TARGET.name} is not what {SOURCE.name} says: python client/unasync.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
