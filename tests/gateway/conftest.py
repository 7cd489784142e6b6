"""Settings that the tests of the gateway have in common."""

from __future__ import annotations

import httpx
import pytest

from tests.support.gateways import PATIENCE_S


@pytest.fixture(scope="session", autouse=True)
def _patient() -> None:
    """Let callers wait: by default httpx gives up after 5 s, also within SDKs, which is no long time under load."""
    for limit in ("connect", "read", "write", "pool"):
        setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, limit, PATIENCE_S)
