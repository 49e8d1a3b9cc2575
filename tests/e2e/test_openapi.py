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

EXAMPLES = 20  # requests for each operation, of each kind
ENDS_THE_SESSION = "post_users_logout"
GOES_ON_FOR_EVER = "text/event-stream"

SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Examiner:
    """Sends what schemathesis makes of each operation: as it is, and again with paths that name something real."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = url, {"Coder-Session-Token": token, "X-Coder-Bypass-Ratelimit": "true"}
        self._count = 0

    def examine(self, operation: Any) -> None:
        raw = operation.definition.raw
        streams = any(GOES_ON_FOR_EVER in answer.get("content", {}) for answer in raw["responses"].values())
        if raw["operationId"] == ENDS_THE_SESSION or (streams and "{" not in operation.path):
            return
        real, headers = self._something_real(raw["security"])

        @SETTINGS
        @given(case=operation.as_strategy())
        def never_fails(case: Any) -> None:
            self._send(case, headers)
            if case.path_parameters and not streams:
                case.path_parameters = {name: real.get(name, value) for name, value in case.path_parameters.items()}
                self._send(case, headers)

        never_fails()

    def _send(self, case: Any, headers: dict[str, str]) -> None:
        response = case.call(headers=headers, timeout=10)
        assert response.status_code < 500, f"{case.as_curl_command()}\n{response.status_code}: {response.text}"

    def _something_real(self, security: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
        """Values for path parameters, and the headers of who may ask: the owner, or a new agent."""
        import requests

        self._count += 1
        definition = {"name": f"real-{self._count}", "scripts": []}
        created = requests.post(f"{self._url}/api/v2/agents", json=definition, headers=self._headers, timeout=10).json()
        real = {"workspaceagent": created["id"], "agent": created["name"], "user": "me"}
        if any("AgentToken" in scheme for scheme in security):
            return real, {"Coder-Session-Token": created["token"]}
        return real, self._headers


def examine_all(url: str, token: str) -> int:
    """How many operations were examined."""
    schema = schemathesis.openapi.from_url(f"{url}/api/v2/openapi.json")
    examiner = Examiner(url, token)
    results = list(schema.get_all_operations())
    for result in results:
        assert isinstance(result, Ok), result
        examiner.examine(result.ok())
    return len(results)


@pytest.mark.timeout(120)
async def test_nothing_that_the_description_allows_breaks_the_server(tmp_path: Path) -> None:
    async with Deployment(tmp_path) as running:
        assert await asyncio.to_thread(examine_all, running.url, running.token) > 20
        assert "Traceback" not in running.server.printed()
