"""A client's session with a scripted server: what it asks, what it does with refusals, and how it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.clock import Clock, SystemClock
from agent.rpc import RpcServer, ServerStream, Streaming, Unary, WebSocketTransport
from agent.tailnet.client import AgentConnection, ServerError, ServerSession, connect
from agent.tailnet.derp_map import DerpMap, to_json, to_message

CLOCK = SystemClock()
AGENT = uuid4()
TOKEN = "0123456789-secret"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers `connection`, and coordinates one client after another."""

    def __init__(self, *, tokens: bool = True) -> None:
        self.tokens = tokens
        self.dials: list[str | None] = []
        """The resume token of each dial of the coordinator."""
        self.refuse: list[web.Response] = []
        """Answers to the next dials, instead of a WebSocket."""
        self.info: object = {"derp_map": to_json(DerpMap()), "disable_direct_connections": True}
        self.seen: list[str] = []
        self.tunnels: list[UUID] = []
        self.goodbyes = 0
        self.garbage = 0
        """How many connections begin with what is no message."""
        self.open: list[RpcServer] = []
        self.url = URL()

    async def connection(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.headers.get("Coder-Session-Token", ""))
        return web.json_response(self.info)

    async def coordinate(self, request: web.Request) -> web.StreamResponse:
        assert request.query["version"] == "2.0"
        self.seen.append(request.headers.get("Coder-Session-Token", ""))
        self.dials.append(request.query.get("resume_token"))
        if self.refuse:
            return self.refuse.pop(0)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        handlers = {
            methods.COORDINATE.path: Streaming(self._coordinate),
            methods.STREAM_DERP_MAPS.path: Streaming(self._maps),
        }
        if self.tokens:
            handlers[methods.REFRESH_RESUME_TOKEN.path] = Unary(self._token)  # type: ignore[assignment]
        server = RpcServer(WebSocketTransport(socket), handlers, CLOCK)
        self.open.append(server)
        await server.serve()
        return socket

    async def _coordinate(self, call: ServerStream) -> None:
        if self.garbage:
            self.garbage -= 1
            await call.send(b"\xff\xff\xff")
        while (message := await call.receive()) is not None:
            request = pb.CoordinateRequest.FromString(message)
            if request.HasField("add_tunnel"):
                self.tunnels.append(UUID(bytes=request.add_tunnel.id))
            if request.HasField("disconnect"):
                self.goodbyes += 1
                return

    async def _maps(self, call: ServerStream) -> None:
        await call.receive()
        await call.send(to_message(DerpMap()).SerializeToString())
        await asyncio.Event().wait()

    async def _token(self, request: bytes) -> bytes:
        return pb.RefreshResumeTokenResponse(token=f"token {len(self.dials)}").SerializeToString()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        app = web.Application()
        app.router.add_get("/api/v2/workspaceagents/{agent}/connection", self.connection)
        app.router.add_get("/api/v2/workspaceagents/{agent}/coordinate", self.coordinate)
        server = TestServer(app, host="127.0.0.1")
        await server.start_server()
        self.url = server.make_url("/")
        try:
            yield self
        finally:
            await server.close()

    @asynccontextmanager
    async def client(self, clock: Clock = CLOCK) -> AsyncIterator[AgentConnection]:
        async with connect(self.url, TOKEN, AGENT, clock) as connection:
            yield connection


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_client_comes_back_as_the_same_peer_and_says_goodbye() -> None:
    async with Server().running() as server:
        async with server.client() as client:
            await until(lambda: server.tunnels == [AGENT] and client._resume_token)
            await server.open[0].aclose()
            await until(lambda: server.tunnels == [AGENT, AGENT])
            assert server.dials == [None, "token 1"]
            assert not client.tailnet.engine.paths.direct
        assert server.goodbyes == 1
        assert set(server.seen) == {TOKEN}


async def test_a_token_that_is_refused_is_dropped() -> None:
    async with Server().running() as server, server.client() as client:
        await until(lambda: client._resume_token)
        mistake = {"message": "Invalid resume token", "validations": [{"field": "resume_token", "detail": "expired"}]}
        server.refuse = [web.json_response(mistake, status=401), web.Response(status=502)]
        await server.open[0].aclose()
        await until(lambda: len(server.open) == 2)
        assert server.dials == [None, "token 1", None, None]


async def test_an_older_server_without_tokens_is_as_good() -> None:
    async with Server(tokens=False).running() as server, server.client():
        await until(lambda: server.tunnels)
        await server.open[0].aclose()
        await until(lambda: len(server.tunnels) == 2)
        assert server.dials == [None, None]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500])
async def test_a_refusal_of_the_first_dial_is_final(status: int) -> None:
    async with Server().running() as server:
        server.refuse = [web.json_response({"message": "No.", "detail": "because"}, status=status)]
        with pytest.raises(ServerError, match="No; because") as caught:
            async with server.client():
                pass
        assert caught.value.status == status
        assert len(server.dials) == 1


async def test_a_server_that_is_busy_is_asked_again() -> None:
    async with Server().running() as server:
        server.refuse = [web.Response(status=503), web.Response(status=429)]
        async with server.client():
            assert len(server.dials) == 3


async def test_a_server_that_talks_nonsense_is_dialled_again(caplog: pytest.LogCaptureFixture) -> None:
    async with Server().running() as server:
        server.garbage = 2
        async with server.client():
            await until(lambda: len(server.open) == 3)
    assert "coordination failed" in caplog.text


class Hasty(SystemClock):
    """A hundred times as fast."""

    def now(self) -> float:
        return super().now() * 100

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 100)


async def test_a_coordinator_that_does_not_come_is_given_up() -> None:
    async with Server().running() as server:
        server.refuse = [web.json_response({"message": "Not now."}, status=503) for _ in range(1000)]
        with pytest.raises(ServerError, match=r"does not coordinate within 30 s: .*Not now \(503\)"):
            async with server.client(Hasty()):
                pass
        assert len(server.dials) > 3


@pytest.mark.parametrize("info", [{}, [], "x", {"derp_map": {"Regions": 5}}, None])
async def test_an_answer_that_is_none_is_told(info: object) -> None:
    async with Server().running() as server:
        server.info = info
        with pytest.raises(ServerError, match="does not tell how to connect"):
            async with server.client():
                pass


async def test_the_token_goes_to_no_other_place() -> None:
    async with Server().running() as elsewhere, Server().running() as server:

        async def redirect(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(elsewhere.url / "api/v2/workspaceagents/x/connection")

        app = web.Application()
        app.router.add_get("/api/v2/workspaceagents/{agent}/connection", redirect)
        async with TestServer(app, host="127.0.0.1") as redirecting:
            session = ServerSession(redirecting.make_url("/"), TOKEN, CLOCK)
            try:
                with pytest.raises(ServerError, match="where the token must not go"):
                    await session.connection_info(AGENT)
            finally:
                await session.aclose()
        assert elsewhere.seen == server.seen == []


async def test_leaving_while_the_server_is_away_does_not_wait() -> None:
    async with Server().running() as server:
        async with server.client():
            await until(lambda: server.tunnels)
            server.refuse = [web.json_response({}, status=503) for _ in range(100)]
            await server.open[0].aclose()
            await until(lambda: len(server.dials) > 1)
            began = CLOCK.now()
        assert CLOCK.now() - began < 2
