"""Make the files for threads, such as client/ranking.py, of those for asyncio, such as client/asynchronous.py.

python client/unasync.py          # writes them
python client/unasync.py --check  # exit code 1 if one is not up to date
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MADE = {"asynchronous.py": "ranking.py", "fleet_async.py": "fleet.py", "channels_async.py": "channels.py"}
HERE = Path(__file__).parent
CHANGES = (
    (r"Iterable\[RankingRequest\] \| AsyncIterable\[RankingRequest\]", "Iterable[RankingRequest]"),
    (r"AsyncIterable, AsyncIterator, Iterable,", "Iterable, Iterator,"),
    (r"Awaitable, ", ""),
    (r"Awaitable\[(\w+)\]", r"\1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(fleet|channels)_async\b", r"\1"),
    (r"tritonclient\.grpc\.aio", "tritonclient.grpc"),
    (r"\baclosing\b", "closing"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"\b(?:async|await) ", ""),
    (r"\basync_", ""),
)


def without_asyncio(source: Path) -> str:
    """The same for threads, formatted as the linter wants it."""
    text = source.read_text(encoding="utf-8")
    for pattern, replacement in CHANGES:
        text = re.sub(pattern, replacement, text)
    docstring = f'"""For any number of threads. Made of client/{source.name} by client/unasync.py: edit that one."""'
    text = re.sub(r'\A""".*?"""', docstring, text, flags=re.DOTALL)
    target = source.with_name(MADE[source.name])
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(target), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main(argv: Sequence[str] | None = None) -> int:
    stale = 0
    for source, target in ((HERE / source, HERE / target) for source, target in MADE.items()):
        wanted = without_asyncio(source)
        if "--check" not in (sys.argv if argv is None else argv):
            target.write_text(wanted, encoding="utf-8")
        elif target.read_text(encoding="utf-8") != wanted:
            print(f"{target.name} is not what {source.name} says: python client/unasync.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
