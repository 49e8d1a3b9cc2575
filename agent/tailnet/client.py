"""A client's node for one agent: everything between a URL with a session token and an open stream (tailnet.md §1.3)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from yarl import URL

from agent.api import methods
from agent.api.tailnet import TAILSCALE_PREFIX, agent_addresses
from agent.backoff import Backoff
from agent.clock import Clock, deadline
from agent.proxy import ProxyError, proxy_for
from agent.rpc import MAX_MESSAGE, CallError, RpcClient, UnsupportedError, WebSocketTransport
from agent.tailnet import derp_map
from agent.tailnet.coordination import ClientCoordinator, CoordinationEndedError, follow_derp_map
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.paths import Answered
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import Tailnet, TailnetError

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger("agent.tailnet")

TOKEN_HEADER: Final = "Coder-Session-Token"  # noqa: S105 - the name of a header
API_VERSION: Final = "2.0"
REQUEST_LIMIT: Final = 30.0
"""Seconds for one request, the upgrade of a WebSocket included."""
START_LIMIT: Final = 30.0
"""Seconds until the server coordinates; what fails meanwhile is tried again."""
REACH_LIMIT: Final = 30.0
"""Seconds until an agent counts as not reachable."""
FAREWELL: Final = 1.0
MAX_BODY: Final = 4 * 1024 * 1024
SETTLED: Final = 10.0
"""Seconds after which a connection that ends is dialled again at once."""
PERMANENT: Final = frozenset({400, 401, 403, 404, 409, 500})
"""Answers to the first dial of the coordinator that no second one would change (§3.1)."""
REFRESH: Final = 1800.0
"""Seconds between two resume tokens where the server tells no sensible time."""


class ServerError(TailnetError):
    """The server cannot be reached, or refuses. `status` is the HTTP status, 0 where there was no answer."""

    def __init__(self, text: str, status: int = 0, fields: frozenset[str] = frozenset()) -> None:
        super().__init__(text)
        self.status = status
        self.fields = fields
        """What the server found fault with, of the request's fields."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What a server tells clients before they connect (§3.9)."""

    derp_map: DerpMap
    force_websockets: bool = False
    disable_direct: bool = False


class ServerSession:
    """The server's HTTP endpoints for clients of agents, as one user. Close it when it is no longer needed."""

    def __init__(self, server: URL, token: str, clock: Clock) -> None:
        import aiohttp

        self.server = server.origin()
        self._token = token
        self._clock = clock
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            middlewares=(self._authenticate,),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def connection_info(self, agent: UUID | None = None) -> ConnectionInfo:
        """For one agent, or for any. Raises `ServerError`."""
        which = f"{agent}/" if agent is not None else ""
        url = self.server / f"api/v2/workspaceagents/{which}connection"
        async with self._reaching(), self._http.get(url, proxy=self._proxy(url)) as response:
            body = await _body(response)
        try:
            value = json.loads(body)
            return ConnectionInfo(
                derp_map.from_json(value["derp_map"]).rewritten(self.server),
                bool(value.get("derp_force_websockets")),
                bool(value.get("disable_direct_connections")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"{self.server} does not tell how to connect ({error}): is it a server?") from error

    async def dial(self, agent: UUID, resume_token: str) -> RpcClient:
        """The coordinator's connection, started. Raises `ServerError`."""
        query = {"version": API_VERSION, **({"resume_token": resume_token} if resume_token else {})}
        url = (self.server / f"api/v2/workspaceagents/{agent}/coordinate").with_query(query)
        async with self._reaching():
            socket = await self._http.ws_connect(url, max_msg_size=MAX_MESSAGE, proxy=self._proxy(url))
        client = RpcClient(WebSocketTransport(socket), self._clock)
        await client.start()
        return client

    async def aclose(self) -> None:
        """Close the session and its connections."""
        await self._http.close()

    async def _authenticate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # Runs for every hop of a redirect, too.
        if request.url.origin() != self.server:
            raise ServerError(
                f"{self.server} redirects to {request.url.origin()}, where the token must not go; log in there"
            )
        request.headers[TOKEN_HEADER] = self._token
        response = await handler(request)
        if response.status >= 400:
            body = await _body(response)
            response.close()
            raise refusal(self.server, response.status, body)
        return response

    def _proxy(self, url: URL) -> URL | None:
        try:
            return proxy_for(url, os.environ)
        except ProxyError as error:
            raise ServerError(f"{self.server}: {error}") from error

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        import aiohttp

        try:
            async with deadline(self._clock, REQUEST_LIMIT):
                yield
        except TimeoutError as error:
            raise ServerError(f"{self.server}: no answer within {REQUEST_LIMIT:g} s") from error
        except aiohttp.ClientHttpProxyError as error:
            # No cause is kept: its text has the proxy's URL, password included.
            raise ServerError(f"{self.server}: the proxy refused: {error.status} {error.message}") from None
        except aiohttp.WSServerHandshakeError as error:
            raise ServerError(f"{self.server}: no WebSocket was opened ({error.message})", error.status) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(f"cannot reach {self.server}: {str(error) or type(error).__name__}") from error


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while len(body) < MAX_BODY and (chunk := await response.content.read(MAX_BODY - len(body))):
        body += chunk
    return bytes(body)


def refusal(server: URL, status: int, body: bytes) -> ServerError:
    """The error for an answer other than the wanted one, out of its body (agent-api.md §1.5)."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    value = value if isinstance(value, dict) else {}
    text = str(value.get("message") or "it gave no reason").rstrip(".")
    listed = value.get("validations")
    mistakes = [entry for entry in (listed if isinstance(listed, list) else []) if isinstance(entry, dict)]
    details = [str(value["detail"])] if value.get("detail") else []
    details += [f"{mistake.get('field')}: {mistake.get('detail')}" for mistake in mistakes]
    fields = frozenset(str(mistake.get("field")) for mistake in mistakes)
    return ServerError(f"{server} refuses: {'; '.join([text, *details])} ({status})", status, fields)


class AgentConnection:
    """One agent, as a client sees it. Streams outlive interruptions of the server, and find an agent that restarted.

    Made by `connect`.
    """

    def __init__(
        self, session: ServerSession, agent: UUID, info: ConnectionInfo, clock: Clock, *, direct: bool = True
    ) -> None:
        self._session = session
        self._agent = agent
        self._clock = clock
        self.address = agent_addresses(agent)[0]
        self.derp_map = info.derp_map
        own = TAILSCALE_PREFIX + os.urandom(10)
        self.tailnet = Tailnet(
            [own],
            clock,
            options=DialOptions(force_websockets=info.force_websockets),
            direct=direct and not info.disable_direct,
        )
        self._coordinator = ClientCoordinator(self.tailnet, uuid4(), agent, clock)
        self._resume_token = ""
        self._trouble: ServerError | None = None
        """Why the coordinator could not be reached the last time."""
        self._coordinated = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Begin; returns once the server coordinates. Raises `ServerError` when it refuses to, or does not in time."""
        self.tailnet.start()
        self._take_map(self.derp_map)
        coordinating = asyncio.create_task(self._keep_coordinated(), name="coordination")
        self._tasks = [coordinating, asyncio.create_task(self._coordinator.expire(), name="lost agents")]
        coordinating.add_done_callback(_ended)
        begun = asyncio.create_task(self._coordinated.wait(), name="the first coordination")
        self._tasks.append(begun)
        try:
            async with deadline(self._clock, START_LIMIT):
                await asyncio.wait({coordinating, begun}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            why = self._trouble or "it does not answer"
            raise ServerError(f"{self._session.server} does not coordinate within {START_LIMIT:g} s: {why}") from error
        if coordinating.done():
            coordinating.result()

    async def aclose(self) -> None:
        """Say goodbye, and end every stream."""
        try:
            if self._coordinated.is_set():
                await self._coordinator.leave(FAREWELL)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.tailnet.aclose()

    @property
    def known(self) -> bool:
        """Whether the server has named the agent: it is, or was just now, connected."""
        return self._coordinator.peers > 0

    def region_name(self, number: int) -> str:
        """A relay region, for people."""
        region = self.derp_map.regions.get(number)
        return region.name or region.code or f"region {number}" if region is not None else f"region {number}"

    async def reachable(self, timeout: float = REACH_LIMIT) -> float:
        """Seconds that the agent's network takes to answer. Raises `TailnetError` when it does not within `timeout`."""
        try:
            return await self.tailnet.reach(self.address, timeout)
        except TailnetError as error:
            if self.known:
                raise TailnetError(f"the agent does not answer within {timeout:g} s") from error
            raise TailnetError(
                f"the agent is not connected to the server, or does not become so within {timeout:g} s"
            ) from error

    async def dial(self, port: int, timeout: float = REACH_LIMIT) -> TailnetStream:
        """A TCP connection to a port of the agent. Raises `TailnetError`, also when nobody listens there."""
        began = self._clock.now()
        await self.reachable(timeout)
        left = max(timeout - (self._clock.now() - began), 1.0)
        return await self.tailnet.dial_tcp(self.address, port, left)

    async def ping(self, timeout: float) -> Answered:
        """How long the agent takes to answer, and on which way. Raises `TailnetError`."""
        try:
            return await self.tailnet.ping(self.address, timeout)
        except TailnetError as error:
            text = f"no answer within {timeout:g} s" if self.known else "the agent is not connected to the server"
            raise TailnetError(text) from error

    def _take_map(self, found: DerpMap) -> None:
        self.derp_map = found.rewritten(self._session.server)
        self.tailnet.update_derp_map(self.derp_map)

    async def _keep_coordinated(self) -> None:
        backoff = Backoff(first=0.081, cap=10.0)
        while True:
            try:
                client = await self._session.dial(self._agent, self._resume_token)
            except ServerError as error:
                if "resume_token" in error.fields:
                    self._resume_token = ""
                elif error.status in PERMANENT and not self._coordinated.is_set():
                    raise
                self._trouble = error
                logger.info("the coordinator cannot be reached: %s", error)
            else:
                self._coordinated.set()
                began = self._clock.now()
                try:
                    await self._serve(client)
                finally:
                    await client.aclose()
                if self._clock.now() - began > SETTLED:
                    backoff.reset()
            await self._clock.sleep(backoff.next())

    async def _serve(self, client: RpcClient) -> None:
        """One connection; when one of its streams ends, all do (§3.6)."""
        streams = [
            asyncio.create_task(self._coordinator.run(client), name="coordinate"),
            asyncio.create_task(follow_derp_map(client, self._take_map), name="derp map"),
            asyncio.create_task(self._refresh_token(client), name="resume token"),
        ]
        try:
            done, _ = await asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if isinstance(error, CallError | CoordinationEndedError):
                    logger.info("the coordinator is gone: %s", error)
                elif error is not None:
                    # What this server says cannot be understood now; another connection may do better.
                    logger.error("coordination failed", exc_info=error)
        finally:
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _refresh_token(self, client: RpcClient) -> None:
        """Keep a token with which the next connection is the same peer for the agent (§3.6)."""
        method = methods.REFRESH_RESUME_TOKEN
        request = method.request().SerializeToString()
        while True:
            try:
                answer = method.response.FromString(await client.unary(method.path, request, REQUEST_LIMIT))
            except UnsupportedError:
                await client.wait_closed()  # an older server: every connection is another peer
                return
            self._resume_token = answer.token
            await self._clock.sleep(answer.refresh_in.seconds if answer.refresh_in.seconds > 0 else REFRESH)


def _ended(task: asyncio.Task[None]) -> None:
    # A refusal is told to whoever starts.
    if not task.cancelled() and not isinstance(error := task.exception(), ServerError | None):
        logger.error("coordination ended", exc_info=error)


@asynccontextmanager
async def connect(
    server: URL, token: str, agent: UUID, clock: Clock, *, direct: bool = True
) -> AsyncIterator[AgentConnection]:
    """A connection to one agent through this server, with a user's session token. Raises `ServerError`.

    `direct=False` keeps to relays. The agent need not be there yet: `reachable` waits for it.
    """
    session = ServerSession(server, token, clock)
    try:
        info = await session.connection_info(agent)
        connection = AgentConnection(session, agent, info, clock, direct=direct)
        try:
            await connection.start()
            yield connection
        finally:
            await connection.aclose()
    finally:
        await session.aclose()
