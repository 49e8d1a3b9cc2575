"""Plain REST calls with the agent token (agent-api.md §2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from yarl import URL

from agent.api.git import GitSshKey, GitToken
from agent.clock import Clock, deadline
from agent.control.errors import RefusedError
from agent.control.http import ControlHttp, reaching, read_bounded

REQUEST_LIMIT = 30.0
"""Seconds for one request, body included (agent-api.md §1.9)."""
LISTEN_LIMIT = 600.0
"""Seconds for one request that the server answers when its user has done something."""

MAX_BODY = 4 * 1024 * 1024


class RestClient:
    """The agent's REST endpoints. Every call raises `UnreachableError`, `RefusedError` or `RedirectError`."""

    def __init__(self, http: ControlHttp, clock: Clock) -> None:
        self._http = http
        self._clock = clock

    async def register_log_source(self, source: UUID, display_name: str, icon: str = "") -> None:
        """Make a log source known; doing so again changes nothing (agent-api.md §2.3)."""
        body = {"id": str(source), "display_name": display_name, "icon": icon}
        url = self._http.url("/api/v2/workspaceagents/me/log-source")
        await self._request("POST", url, body, expected=201)

    async def instance_identity(self, method: str, proof: Mapping[str, str]) -> str:
        """The session token for a cloud's proof of this instance (agent-api.md §5). `method` is as in `--auth`.

        No token belongs to this request: the client's `ControlHttp` should have none.
        """
        url = self._http.url(f"/api/v2/workspaceagents/{method}")
        return _text(await self._request("POST", url, dict(proof)), "session_token", url)

    async def git_ssh_key(self) -> GitSshKey:
        """The key pair of the workspace's owner (agent-api.md §2.5)."""
        url = self._http.url("/api/v2/workspaceagents/me/gitsshkey")
        found = await self._request("GET", url)
        return GitSshKey(_text(found, "public_key", url), _text(found, "private_key", url))

    async def git_token(self, match: str, *, listen: bool = False) -> GitToken:
        """What logs in at the git host of this URL, or where the owner authorises that (agent-api.md §2.4).

        `listen` waits for the owner, up to `LISTEN_LIMIT`.
        """
        path = "/api/v2/workspaceagents/me/external-auth"
        url = self._http.url(path, listen="true", match=match) if listen else self._http.url(path, id="", match=match)
        found = await self._request("GET", url, limit=LISTEN_LIMIT if listen else REQUEST_LIMIT)
        return GitToken(*(_text(found, name, url) for name in ("username", "password", "url")))

    async def _request(
        self, method: str, url: URL, body: object = None, *, expected: int = 200, limit: float = REQUEST_LIMIT
    ) -> Any:
        sent: dict[str, Any] = {}
        if body is not None:
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            sent = {"data": data, "headers": {"Content-Type": "application/json"}}
        request = f"{method} {url.with_query(None)}"
        with reaching(url):
            async with (
                deadline(self._clock, limit),
                self._http.session.request(method, url, proxy=self._http.proxy(), **sent) as response,
            ):
                content = await read_bounded(response, MAX_BODY)
        if response.status != expected:
            raise RefusedError(request, response.status, f"expected status {expected}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RefusedError(request, response.status, "the answer is not JSON", str(error)) from error


def _text(answer: Any, name: str, url: URL) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise RefusedError(f"GET {url.with_query(None)}", 200, f'the answer has no text "{name}"')
    return value
