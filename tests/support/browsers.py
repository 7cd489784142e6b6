"""The Chromium of the system, for tests of pages and for the screenshots in docs/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.waiting import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUERY = "garden bridge"
TEXTS = ["river bridge", "copper forest", "garden market of silver", "winter garden", "stone"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Raises FileNotFoundError if there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is on the PATH: apt-get install chromium")
    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        # Without a sandbox: in containers there is no right to one, and only our own page is loaded.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=1000 * PATIENCE_S)
        yield browser
        browser.close()


def ask(page: Page, documents: list[str], query: str = QUERY) -> None:
    """Rank the documents on the gateway's page."""
    page.get_by_label("Query", exact=True).fill(query)
    page.get_by_label("Candidates").fill("\n".join(documents))
    page.get_by_role("button", name="Rank").click()
