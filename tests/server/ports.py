"""A workspace in memory with aiohttp applications at its ports, behind a server whose ports have hosts of `ws.test`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from aiohttp import web
from yarl import URL

from agent.clock import Clock, SystemClock
from agent.server.network import AgentNetwork, AgentUnreachableError, PortRefusedError
from agent.tailnet.transport import StreamTransport
from agent.testing.streams import MemoryStream, stream_pair
from tests.server.deployment import Deployment, NewAgent, deployment

PORT = 8080
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Workspace:
    """`serve` answers at `PORT`; nothing listens elsewhere. `raw` takes connections instead of it."""

    serve: Handler | None = None
    raw: Callable[[MemoryStream], Awaitable[None]] | None = None
    away: str = ""
    dials: list[int] = field(default_factory=list)
    _runner: web.ServerRunner | None = None

    async def dial(self, agent: UUID, port: int, timeout: float) -> MemoryStream:
        self.dials.append(port)
        if self.away:
            raise AgentUnreachableError(self.away)
        if port != PORT:
            raise PortRefusedError(f"dial: port {port} of the workspace refuses connections")
        near, far = stream_pair()
        if self.raw is not None:
            await self.raw(far)
            return near
        if self._runner is None:
            self._runner = web.ServerRunner(web.Server(self._answer, auto_decompress=False), shutdown_timeout=0.1)
            await self._runner.setup()
        assert self._runner.server is not None
        StreamTransport(far, self._runner.server(), SystemClock())
        return near

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self.serve is not None
        return await self.serve(request)  # type: ignore[arg-type] # there is no application

    async def aclose(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


@dataclass
class Browser:
    """Speaks to one origin, with what cookies it got there."""

    server: Deployment
    agent: NewAgent
    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"{self.port}--{self.agent.id}.ws.test"

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    def options(self, headers: dict[str, str] | None = None) -> dict[str, Any]:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return {
            "headers": {"Host": self.host, **({"Cookie": cookie} if cookie else {}), **(headers or {})},
            "allow_redirects": False,
        }

    def request(self, method: str, target: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        base = URL(self.server.url)
        url = URL.build(scheme="http", host=base.host or "", port=base.port, path=target, encoded=True)
        return self.server.http.request(method, url, **self.options(headers), **options)

    async def fetch(
        self, method: str, target: str, headers: dict[str, str] | None = None, **options: Any
    ) -> tuple[int, Any, bytes]:
        async with self.request(method, target, headers, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def ticket(self, token: str | None = None, expect: int = 201) -> str:
        """The target that a ticket's link names."""
        path = f"/api/v2/agents/{self.agent.id}/ports/{self.port}/tickets"
        answer = await self.server.call("POST", path, token=token, expect=expect)
        if expect != 201:
            return str(answer["message"])
        origin, slash, rest = answer["url"].removeprefix("http://").partition("/")
        assert origin == self.host
        return f"{slash}{rest}"

    async def enter(self, token: str | None = None) -> None:
        status, headers, _ = await self.fetch("GET", await self.ticket(token))
        assert status == 303
        assert headers["Location"] == f"{self.origin}/"
        name, _, rest = headers["Set-Cookie"].partition("=")
        self.cookies[name] = rest.partition(";")[0]


@asynccontextmanager
async def ports(
    tmp_path: Path,
    workspace: Workspace,
    monkeypatch: Any,
    clock: Clock | None = None,
    *,
    enter: bool = True,
    **settings: Any,
) -> AsyncIterator[Browser]:
    """A browser that was let in to `PORT` of a connected agent (with `enter`)."""

    async def dial(network: AgentNetwork, agent: UUID, port: int, timeout: float = 30) -> MemoryStream:
        return await workspace.dial(agent, port, timeout)

    monkeypatch.setattr(AgentNetwork, "dial", dial)
    options = {"workspace_url": "http://*.ws.test", **settings}
    try:
        async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path, clock, **options) as server:
            agent = await server.new_agent()
            async with server.rpc(agent):
                browser = Browser(server, agent, PORT)
                if enter:
                    await browser.enter()
                yield browser
    finally:
        await workspace.aclose()


async def until(check: Callable[[], bool], seconds: float = 5) -> None:
    """Wait for something that other tasks do."""
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.01)
