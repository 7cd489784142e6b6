"""The page at /: one answer, with its style and its script in it; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def read_page() -> tuple[str, dict[str, str]]:
    """The HTML, and headers that keep it to itself: only the script and the style that are in it may run."""
    folder = files(__package__)
    html, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "style.css", "page.js")
    )
    html = html.replace("/* style.css */", style).replace("/* page.js */", script)
    policy = (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
