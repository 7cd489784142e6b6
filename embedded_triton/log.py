"""Triton's log as people see it: all of it, or only what is wrong."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from contextlib import suppress

LAST_LINES = 3
HEAD = re.compile(rb"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ ")  # the level of an entry, and when it was made
REST = re.compile(rb"[+|]|\s*$")  # the further lines of an entry that is a table
# There is no GPU for this build, and beside the versions of a model lies its code.
FALSE_ALARMS = re.compile(
    rb"CudaDriverHelper has not been initialized|unable to create stream for .*: CUDA driver version is insufficient"
    rb"|no pinned memory pool|ignore version directory '(runtime|pair_encoding|__pycache__)'"
)


class Log(threading.Thread):
    """Hands Triton's log on, and remembers its last lines."""

    def __init__(self, whole: bool) -> None:
        super().__init__(name="log", daemon=True)
        self._source, self.sink = os.pipe()
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._faults = None if whole else Faults()

    def run(self) -> None:
        with os.fdopen(self._source, "rb") as source:
            for line in source:
                self._lines.append(line)
                if self._faults and not self._faults.has(line):
                    continue
                with suppress(OSError):  # whoever read it has left; Triton goes on
                    os.write(sys.stderr.fileno(), line)

    def last(self) -> str:
        lines = [line.decode(errors="replace").strip() for line in self._lines]
        return " | ".join(filter(None, lines)) or "it printed nothing"


class Faults:
    """Leaves out what only informs, and complaints that are false here. What is no entry of Triton's, as a model prints
    it, is shown, and so are the further lines of an entry that is."""

    def __init__(self) -> None:
        self._hidden = False  # the entry that was begun last

    def has(self, line: bytes) -> bool:
        if head := HEAD.match(line):
            self._hidden = head[1] == b"I" or FALSE_ALARMS.search(line) is not None
            return not self._hidden
        return not (self._hidden and REST.match(line))
