"""A control plane that does what a test says: it serves the Agent service and writes down what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from agent.api import methods
from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT, ApiVersion, VersionRefusedError, accept_version
from agent.clock import Clock
from agent.control import RefusedError
from agent.rpc import RpcAgentApi, RpcClient, RpcError, RpcServer, Transport, Unary, WebSocketTransport
from agent.testing.transport import MemoryTransport, memory_pair

Answer = TypeVar("Answer", bound=Message)

METHODS: Mapping[str, RpcMethod[Any, Any]] = {
    method.name: method
    for method in vars(methods).values()
    # The Tailnet service is absent, as at a server without a network.
    if isinstance(method, RpcMethod) and method.service == methods.SERVICE
}

AGENT_ID = UUID("11111111-2222-3333-4444-555555555555")


def simple_manifest(*scripts: pb.WorkspaceAgentScript, agent_id: UUID = AGENT_ID) -> pb.Manifest:
    """A valid manifest with these scripts."""
    return pb.Manifest(
        agent_id=agent_id.bytes,
        agent_name="main",
        owner_username="alice",
        workspace_id=UUID(int=7).bytes,
        workspace_name="dev",
        scripts=scripts,
    )


class FakeControlPlane:
    """Serves one agent, over memory (`connect` is what the daemon's connector dials) or any other transport (`serve`).

    `calls` holds every request in the order of arrival, refused ones included. A test may change `manifest`, `version`
    and `handlers`, put errors into `failures` (one per call of that method) and `refusals` (one per `connect`), and
    name methods in `hanging` that are taken but never answered.
    """

    def __init__(self, clock: Clock, manifest: pb.Manifest | None = None) -> None:
        self._clock = clock
        self.manifest = manifest or simple_manifest()
        self.version: ApiVersion = CURRENT
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, deque[RpcError]] = defaultdict(deque)
        self.refusals: deque[Exception] = deque()
        self.hanging: set[str] = set()
        self.handlers: dict[str, Callable[[Any], Awaitable[Message]]] = {}
        self.attempts: list[float] = []
        """When each `connect` was called, on the clock."""
        self.tokens: list[str] = []
        """The token of each request for a connection that came over HTTP."""
        self.connections = 0
        self._changed = asyncio.Event()
        self._servers: dict[RpcServer, Transport] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- what a test looks at

    def received(self, name: str) -> list[Any]:
        """The requests of one method, oldest first."""
        return [request for called, request in self.calls if called == name]

    @property
    def states(self) -> list[str]:
        """The lifecycle states that were reported, in lower case."""
        return [
            pb.Lifecycle.State.Name(request.lifecycle.state).lower() for request in self.received("UpdateLifecycle")
        ]

    @property
    def lines(self) -> list[str]:
        """The log lines that arrived."""
        return [log.output for request in self.received("BatchCreateLogs") for log in request.logs]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a request makes `condition` true."""
        while not condition():
            await self._changed.wait()

    # ---- what a test does

    async def connect(self) -> RpcAgentApi:
        """A new connection in memory; raises the next of `refusals` instead if there is one."""
        self.attempts.append(self._clock.now())
        if self.refusals:
            raise self.refusals.popleft()
        ours, theirs = memory_pair()
        task = asyncio.create_task(self.serve(theirs), name="fake control plane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        client = RpcClient(ours, self._clock)
        await client.start()
        return RpcAgentApi(client, self.version)

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends."""
        server = RpcServer(transport, {method.path: self._handler(method) for method in METHODS.values()}, self._clock)
        self._servers[server] = transport
        self.connections += 1
        self._notify()
        try:
            await server.serve()
        finally:
            del self._servers[server]
            self._notify()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve agents on a free port of 127.0.0.1, as a real server does; gives the URL.

        The next of `refusals` is answered with its status if it is a `RefusedError`. A version above `version` is
        refused as agent-api.md §7.1 says.
        """
        from aiohttp import web

        async def rpc(request: web.Request) -> web.StreamResponse:
            self.attempts.append(self._clock.now())
            self.tokens.append(request.headers.get("Coder-Session-Token", ""))
            if self.refusals and isinstance(refusal := self.refusals.popleft(), RefusedError):
                return web.json_response({"message": refusal.message}, status=refusal.status)
            try:
                accept_version(request.query["version"], self.version)
            except VersionRefusedError as error:
                body = {"message": "Unknown or unsupported API version"}
                validations = [{"field": "version", "detail": str(error)}]
                return web.json_response({**body, "validations": validations}, status=400)
            socket = web.WebSocketResponse(max_msg_size=0)
            await socket.prepare(request)
            await self.serve(WebSocketTransport(socket))
            return socket

        app = web.Application()
        app.router.add_get("/api/v2/workspaceagents/me/rpc", rpc)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await self.drop()
            await runner.cleanup()

    @property
    def connected(self) -> int:
        """How many connections are open now."""
        return len(self._servers)

    async def drop(self) -> None:
        """Close every connection, as a server that is restarted does."""
        for server in list(self._servers):
            await server.aclose()

    async def cut(self) -> None:
        """Break every connection in memory, as a lost network does."""
        for transport in list(self._servers.values()):
            assert isinstance(transport, MemoryTransport)
            await transport.break_off()

    async def aclose(self) -> None:
        """Close everything."""
        await self.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- handlers

    def _handler(self, method: RpcMethod[Any, Any]) -> Unary:
        async def handle(data: bytes) -> bytes:
            request = method.request.FromString(data)
            self.calls.append((method.name, request))
            self._notify()
            if self.failures[method.name]:
                raise self.failures[method.name].popleft()
            if method.name in self.hanging:
                await asyncio.Event().wait()
            handler = self.handlers.get(method.name)
            answer = await handler(request) if handler else self._answer(method, request)
            return answer.SerializeToString()

        return Unary(handle)

    def _answer(self, method: RpcMethod[Any, Any], request: Any) -> Message:
        match method.name:
            case "GetManifest":
                return self.manifest
            case "UpdateLifecycle":
                return pb.Lifecycle.FromString(request.lifecycle.SerializeToString())
            case "UpdateStartup":
                return pb.Startup.FromString(request.startup.SerializeToString())
            case _:
                answer: Message = method.response()
                return answer

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
