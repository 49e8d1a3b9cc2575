"""The management API as the people-facing commands use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from agent.backoff import Backoff
from agent.cli.errors import CliError
from agent.cli.session import Session
from agent.clock import Clock, SystemClock

TOKEN_HEADER = "Coder-Session-Token"  # noqa: S105 the name of a header
REQUEST_LIMIT = 30.0
FOLLOW_LIMIT = 60.0  # seconds without a frame or a pong after which a follow socket is dialled again


class ApiError(CliError):
    """The server refused; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One server, one user; an asynchronous context manager."""

    def __init__(self, session: Session, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._http: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        return self._session.url

    async def __aenter__(self) -> Client:
        headers = {TOKEN_HEADER: self._session.token} if self._session.token else {}
        self._http = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=REQUEST_LIMIT),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    async def get(self, path: str, **query: str) -> Any:
        return await self.request("GET", path, query=query)

    async def post(self, path: str, body: object = None) -> Any:
        return await self.request("POST", path, json_body=body)

    async def delete(self, path: str) -> Any:
        return await self.request("DELETE", path)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        json_body: object = None,
        text: str | None = None,
    ) -> Any:
        """The decoded answer to `/api/v2/PATH`; `text` is sent as it is, `json_body` as JSON. Raises CliError."""
        assert self._http is not None
        body: dict[str, Any] = {"data": text.encode()} if text is not None else {"json": json_body}
        try:
            async with self._http.request(
                method, f"{self.url}/api/v2/{path}", params=query or None, allow_redirects=False, **body
            ) as response:
                return await self._decode(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def redeem(self, path: str) -> str:
        """The session token that the one-time login link `PATH` gives."""
        assert self._http is not None
        try:
            async with self._http.get(f"{self.url}{path}", allow_redirects=False) as response:
                cookie = response.cookies.get("coder_session_token")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        if cookie is None or not cookie.value:
            raise CliError("this login link was used before or has expired; ask for a new one")
        return cookie.value

    async def follow_logs(self, agent_id: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Log lines as the server stores them, from the first one with an id above `after`, until the agent's build
        is superseded. A connection that breaks is dialled again where it stopped, for as long as the caller waits."""
        backoff = Backoff(first=0.25, cap=5)
        while True:
            try:
                async for line in self._follow_once(agent_id, after):
                    after = int(line["id"])
                    backoff.reset()
                    yield line
                return
            except (aiohttp.ClientConnectionError, _BrokenError, TimeoutError):
                await self._clock.sleep(backoff.next())
            except aiohttp.WSServerHandshakeError as error:
                if error.status < 500:
                    await self.get(f"workspaceagents/{agent_id}/logs", after=str(after))  # raises with the reason
                await self._clock.sleep(backoff.next())

    async def _follow_once(self, agent_id: str, after: int) -> AsyncIterator[dict[str, Any]]:
        assert self._http is not None
        target = f"{self.url}/api/v2/workspaceagents/{agent_id}/logs?follow&no_compression&after={after}"
        async with self._http.ws_connect(target, heartbeat=FOLLOW_LIMIT, max_msg_size=0, autoping=True) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    for line in json.loads(message.data):
                        yield line
            if socket.close_code != aiohttp.WSCloseCode.OK:
                raise _BrokenError

    async def _decode(self, response: aiohttp.ClientResponse) -> Any:
        text = await response.read()
        status = response.status
        if status < 300 and not text:
            return None
        try:
            if response.content_type != "application/json":
                raise ValueError(response.content_type)
            body = json.loads(text)
        except ValueError as error:
            raise ApiError(
                status, f"{self.url} answered {status} without JSON ({error}): is it a workspace-agent server?"
            ) from error
        if status == 401 and self._session.token:
            raise ApiError(
                status, f"the session at {self.url} is not valid any more; run: workspace-agent login {self.url}"
            )
        if status >= 300:
            raise ApiError(status, explain(body, status))
        return body

    def _unreachable(self, error: BaseException) -> CliError:
        reason = f"no answer within {REQUEST_LIMIT:.0f} s" if isinstance(error, TimeoutError) else str(error)
        return CliError(f"cannot reach {self.url}: {reason}; is the server running there?")


class _BrokenError(Exception):
    """A follow socket ended in another way than by the server's decision."""


def explain(body: Any, status: int) -> str:
    """One line from an error body (agent-api.md §1.5); one more per mistake where the server lists several."""
    if not isinstance(body, dict) or not body.get("message"):
        return f"the server answered {status} and gave no reason"
    text = str(body["message"])
    if body.get("detail"):
        text = f"{text.rstrip('.')}: {body['detail']}"
    mistakes = body.get("validations") or []
    return "\n".join([text, *(f"  {mistake['field']}: {mistake['detail']}" for mistake in mistakes)])


def base_url(text: str) -> tuple[str, str]:
    """Splits what a person gives as a server into its base URL and the rest; `http://` may be left out."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise CliError(f"{text!r} is no server address; it looks like https://host or http://127.0.0.1:7080")
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    return f"{parts.scheme}://{parts.netloc}", rest
