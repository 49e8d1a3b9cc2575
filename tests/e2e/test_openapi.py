"""The server's own description of itself, taken at its word: no request that it allows is answered with a 5xx."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from agent.testing.deployment import Deployment

EXAMPLES = 12  # requests for each operation
ENDS_THE_SESSION = {("POST", "/api/v2/users/logout")}


def examine(url: str, token: str) -> list[str]:
    """The operations that were examined. Fails on the first 5xx, with the request that caused it."""
    schema = schemathesis.openapi.from_url(f"{url}/api/v2/openapi.json")
    headers = {"Coder-Session-Token": token, "X-Coder-Bypass-Ratelimit": "true"}
    examined = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if (operation.method.upper(), operation.path) in ENDS_THE_SESSION or _streams(operation):
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def never_fails(case: Any) -> None:
            response = case.call(headers=headers, timeout=10)
            assert response.status_code < 500, f"{case.as_curl_command()}\n{response.status_code}: {response.text}"

        never_fails()
        examined.append(f"{operation.method.upper()} {operation.path}")
    return examined


def _streams(operation: Any) -> bool:
    """Whether an answer goes on for ever."""
    answers = operation.definition.raw.get("responses", {})
    return any("text/event-stream" in answer.get("content", {}) or code == "101" for code, answer in answers.items())


@pytest.mark.timeout(120)
async def test_nothing_that_the_description_allows_breaks_the_server(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        examined = await asyncio.to_thread(examine, running.url, running.token)
        assert len(examined) > 20
        assert "Traceback" not in running.server.printed()
