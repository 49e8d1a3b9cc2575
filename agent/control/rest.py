"""Plain REST calls with the agent token (agent-api.md §2)."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from agent.clock import Clock, deadline
from agent.control.errors import RefusedError
from agent.control.http import ControlHttp, reaching, read_bounded

REQUEST_LIMIT = 30.0
"""Seconds for one request, body included (agent-api.md §1.9)."""

MAX_BODY = 4 * 1024 * 1024


class RestClient:
    """The agent's REST endpoints. Every call raises `UnreachableError`, `RefusedError` or `RedirectError`."""

    def __init__(self, http: ControlHttp, clock: Clock) -> None:
        self._http = http
        self._clock = clock

    async def register_log_source(self, source: UUID, display_name: str, icon: str = "") -> None:
        """Make a log source known; doing so again changes nothing (agent-api.md §2.3)."""
        body = {"id": str(source), "display_name": display_name, "icon": icon}
        await self._request("POST", "/api/v2/workspaceagents/me/log-source", body, expected=201)

    async def _request(self, method: str, path: str, body: object, expected: int) -> Any:
        url = self._http.url(path)
        with reaching(url):
            async with (
                deadline(self._clock, REQUEST_LIMIT),
                self._http.session.request(
                    method,
                    url,
                    data=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n",
                    headers={"Content-Type": "application/json"},
                    proxy=self._http.proxy(),
                ) as response,
            ):
                content = await read_bounded(response, MAX_BODY)
        if response.status != expected:
            raise RefusedError(f"{method} {url}", response.status, f"expected status {expected}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"{method} {url}", response.status, "the answer is not JSON", str(error)) from error
