"""Records of a search log, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCUMENT: dict[str, Any] = {"doc_id": "d1", "title": "A title", "summary": "", "label": 2, "clicks": 1}
GROUP: dict[str, Any] = {
    "query_id": "q1",
    "query": "a query",
    "documents": [DOCUMENT, {**DOCUMENT, "doc_id": "d2", "label": None}],
}


def written(path: Path, *lines: object) -> Path:
    """A file of lines: strings as they are, other values as JSON."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
