"""The screenshots of docs/gateway.md, from a running gateway with two models.

python -m tests.support.screenshots http://127.0.0.1:8080 runs/demo/collection/test.jsonl docs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, ViewportSize

from tests.support.browsers import chromium

SHOWN = 12  # place of the query in the file, as in the demo
LONG = {"doc_id": "long", "title": "Everything about blenders", "summary": "The mixer that has to be quiet. " * 90}
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 720}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("queries", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    group = json.loads(arguments.queries.read_text(encoding="utf-8").splitlines()[SHOWN])
    group["documents"].append(LONG)
    text = json.dumps(group)
    with chromium() as browser:
        shoot(browser, arguments.url, text, DESKTOP, arguments.folder / "gateway-desktop.png", compared=True)
        shoot(browser, arguments.url, text, PHONE, arguments.folder / "gateway-phone.png", compared=False)
    return 0


def shoot(browser: Browser, url: str, text: str, size: ViewportSize, path: Path, *, compared: bool) -> None:
    page = browser.new_page(viewport=size, color_scheme="light" if compared else "dark", reduced_motion="reduce")
    page.goto(url)
    page.get_by_label("Candidates").fill(text)
    if compared:
        page.get_by_label("Compare with").select_option(index=2)
    for _ in range(3):  # the first are the slowest
        page.keyboard.press("Control+Enter")
        page.locator("#results:not([aria-busy])").wait_for()
    page.locator("li summary").nth(1).click()  # a row that is open
    page.mouse.move(0, 0)
    page.get_by_label("Candidates").evaluate("one => { one.blur(); one.scrollTop = 0; }")
    page.screenshot(path=path)
    page.close()
    Image.open(path).quantize().save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    sys.exit(main())
