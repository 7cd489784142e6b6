"""The page at /: one answer, with its style and its script in it; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path

from client.errors import InvalidRequestError
from client.inputs import lines, opened, query_of, record_of, text_of
from client.records import NAMES

SCRIPTS = ("reading.js", "asking.js", "drawing.js", "sharing.js", "page.js")  # as one, in this order

MOST_EXAMPLES = 10


def read_examples(path: Path) -> list[str]:
    """The first lines of a file of queries with documents. Raises InvalidRequestError that names the file and line."""
    examples = []
    with opened(path) as file:
        for where, number, line in islice(lines(path, file), MOST_EXAMPLES):
            try:
                query_of(record_of(line, number))
            except InvalidRequestError as error:
                raise InvalidRequestError(f"--examples {where}: {error}") from error
            examples.append(text_of(line, number).strip())
    if not examples:
        raise InvalidRequestError(f"--examples {path}: no queries in this file")
    return examples


def read_page(examples: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """The HTML, and headers that keep it to itself: only the script and the style that are in it may run.

    ``examples`` are lines of JSON, each a query with its documents.
    """
    html, style, *scripts = (
        files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "style.css", *SCRIPTS)
    )
    script = "\n".join(['"use strict";', *scripts])
    data = "\n".join(examples).replace("<", r"\u003c")  # which would end the element that they lie in
    contents = {"style.css": style, "names": json.dumps(NAMES), "script": script, "examples": data}
    for place, content in contents.items():
        html = html.replace(f"/* {place} */", content)
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
