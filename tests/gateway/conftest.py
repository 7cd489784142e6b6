"""Settings that the tests of the gateway have in common, and its page in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import chromium
from tests.support.gateways import PATIENCE_S, Gateway


@pytest.fixture(scope="session", autouse=True)
def _patient() -> None:
    """Let callers wait: by default httpx gives up after 5 s, also within SDKs, which is no long time under load."""
    for limit in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, limit, PATIENCE_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    console_errors: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: console_errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.goto(gateway.url)
    expect(page.locator("#health")).to_have_text("ready")
    yield page
    context.close()
    assert all(url.startswith((gateway.url, "data:")) for url in asked)
    assert console_errors == []
