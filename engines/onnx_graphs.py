"""Changes to ONNX graphs."""

from __future__ import annotations

import copy
from typing import Any


def replace(repeated: Any, messages: list[Any]) -> None:
    """New contents of a repeated field, perhaps some of its own messages."""
    copies = [copy.deepcopy(message) for message in messages]  # clearing the field takes those that it holds
    del repeated[:]
    repeated.extend(copies)
