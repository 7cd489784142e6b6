"""Requests made up from the OpenAPI description, valid and invalid ones: every answer is one that it describes.

That all valid ones are accepted is not checked: a schema cannot say which fields of a document rank_fields may name.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from client.gateway.problems import RERANK_ROUTES
from tests.support.gateways import Gateway


@pytest.fixture(scope="module")
def description(gateway: Gateway) -> Any:
    return schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/score"])
def test_every_answer_is_described(description: Any, path: str, mode: GenerationMode) -> None:
    seen = set()

    @settings(max_examples=20, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=description[path]["POST"].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if mode.is_positive:  # or many a request is late, as it says
            case.headers = {name: value for name, value in case.headers.items() if not name.endswith("-timeout-ms")}
        seen.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    ask()
    assert seen & ({200} if mode.is_positive else {400, 422})


def test_the_description_names_all_and_its_page_needs_nobody_else(gateway: Gateway) -> None:
    described = httpx.get(f"{gateway.url}/openapi.json").json()
    status = {"/health", "/livez", "/readyz", "/metrics", "/v1/models", "/info"}
    assert set(described["paths"]) == {*RERANK_ROUTES, *status}
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    known = {tag["name"] for tag in described["tags"]}
    assert all(operation["description"] and {*operation["tags"]} <= known for operation in operations)
    for path in RERANK_ROUTES:
        codes = set(described["paths"][path]["post"]["responses"])
        assert codes >= {"200", "400", "401", "404", "413", "422", "429", "502", "503", "504"}
    answer = httpx.get(f"{gateway.url}/docs")
    page, policy = answer.text, answer.headers["Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert f"script-src 'self' 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}';" in policy
    assert "/static-offline-docs/swagger-ui-bundle.js" in page
    assert "https://" not in page
    assert httpx.get(f"{gateway.url}/static-offline-docs/swagger-ui-bundle.js").status_code == 200
