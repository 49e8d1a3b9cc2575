"""The Tailnet service: the coordinator and the DERP map, driven by streams (tailnet.md §3.3, §3.8)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.clock import Clock, deadline, wait_for
from agent.protocol.drpc import ErrorCode
from agent.rpc import Handler, RpcError, ServerStream, StreamBrokenError, Streaming, Unary
from agent.server.coordinator import Connection, Coordinator, RequestError
from agent.server.derp_map import TOPIC, DerpMaps
from agent.server.events import Events
from agent.server.store import Database
from agent.server.tailnet_rpc import workspaces
from agent.server.tailnet_rpc.pace import Pace
from agent.server.tailnet_rpc.policies import AgentPolicy, Policy, RefusedError
from agent.server.tailnet_rpc.resume import REFRESH, ResumeTokens

logger = logging.getLogger("agent.server.tailnet")

SEND_TIMEOUT = 30.0
"""A peer that does not take one response for so long is lost."""
MAX_REQUEST = 128 * 1024
"""Bytes. A node may have `MAX_NODE`, and an agent names up to `MAX_READY` peers."""
REQUEST_BURST, REQUEST_RATE = 512, 128.0
"""Requests of one peer at once, and a second: each costs every peer that it has a tunnel with as much as the server."""
CLOSE_TIMEOUT = 2.0
"""Seconds that peers get to take what they are told when the server stops."""


@dataclass(frozen=True, slots=True)
class Client:
    """A connected client. `audience` is who it is and what for; its resume token works for that alone."""

    peer: UUID
    policy: Policy
    audience: str
    user: UUID
    is_owner: bool
    """Owners may look at everybody's workspaces, others at their own."""
    sees_workspaces: bool


class TailnetService:
    """Makes the handlers of connections; they share a coordinator and a DERP map."""

    def __init__(
        self,
        coordinator: Coordinator,
        derp_maps: DerpMaps,
        tokens: ResumeTokens,
        database: Database,
        events: Events,
        clock: Clock,
    ) -> None:
        self._coordinator, self._derp_maps, self._tokens = coordinator, derp_maps, tokens
        self._database, self._events, self._clock = database, events, clock
        self._streams: set[asyncio.Future[None]] = set()
        self.slowed = 0
        """Requests that had to wait, since their peer sends too many."""

    def agent_handlers(self, agent: UUID) -> dict[str, Handler]:
        """By path, for the connection of an agent."""

        async def coordinate(stream: ServerStream) -> None:
            await self._coordinate(stream, agent, AgentPolicy(agent))

        return self._handlers() | {methods.COORDINATE.path: Streaming(coordinate)}

    def client_handlers(self, client: Client) -> dict[str, Handler]:
        """By path, for the connection of a client."""

        async def coordinate(stream: ServerStream) -> None:
            await self._coordinate(stream, client.peer, client.policy)

        async def refresh(_: bytes) -> bytes:
            token, expires = self._tokens.make(client.peer, client.audience, self._clock.wall() // 10**9)
            answer = pb.RefreshResumeTokenResponse(
                token=token, refresh_in=Duration(seconds=REFRESH), expires_at=Timestamp(seconds=expires)
            )
            return answer.SerializeToString()

        one_at_a_time = asyncio.Lock()  # each costs the database a query whenever something happens

        async def updates(stream: ServerStream) -> None:
            async with one_at_a_time:
                await self._workspace_updates(stream, client)

        handlers = self._handlers()
        handlers[methods.COORDINATE.path] = Streaming(coordinate)
        handlers[methods.REFRESH_RESUME_TOKEN.path] = Unary(refresh)
        if client.sees_workspaces:
            handlers[methods.WORKSPACE_UPDATES.path] = Streaming(updates)
        return handlers

    async def aclose(self) -> None:
        """Tell all peers that the coordinator stops, and wait a moment for their streams to end."""
        self._coordinator.close()
        if self._streams:
            try:
                await wait_for(self._clock, asyncio.wait(tuple(self._streams)), CLOSE_TIMEOUT)
            except TimeoutError:
                logger.info("%d peers did not take the news that the coordinator stops", len(self._streams))

    def _handlers(self) -> dict[str, Handler]:
        """What all connections have. Whatever is not there answers code 12, which peers understand (§3.2)."""
        return {
            methods.STREAM_DERP_MAPS.path: Streaming(self._stream_derp_maps),
            methods.POST_TELEMETRY.path: Unary(_drop_telemetry),
            methods.REFRESH_RESUME_TOKEN.path: Unary(_unimplemented),
            methods.WORKSPACE_UPDATES.path: Unary(_unimplemented),
        }

    async def _coordinate(self, stream: ServerStream, peer: UUID, policy: Policy) -> None:
        ended = asyncio.get_running_loop().create_future()
        self._streams.add(ended)
        changed = asyncio.Event()
        connection = self._coordinator.connect(peer, changed.set)
        reader = asyncio.create_task(self._read(stream, connection, policy), name=f"coordinate {peer}")
        try:
            await self._write(stream, connection, changed)
        finally:
            self._coordinator.lose(connection)
            self._streams.discard(ended)
            ended.set_result(None)
            reader.cancel()
            await asyncio.wait((reader,))

    async def _read(self, stream: ServerStream, connection: Connection, policy: Policy) -> None:
        """Requests, until the peer sends no more, or one ends the stream."""
        error, pace = "", Pace(REQUEST_BURST, REQUEST_RATE)
        try:
            while not connection.ended and (data := await stream.receive()) is not None:
                if len(data) > MAX_REQUEST:
                    raise RequestError(f"a request of {len(data)} bytes is larger than {MAX_REQUEST}")
                if (seconds := pace.wait(self._clock.now())) > 0:
                    self.slowed += 1
                    await self._clock.sleep(seconds)
                request = pb.CoordinateRequest.FromString(data)
                await policy.check(request)
                self._coordinator.handle(connection, request)
                await asyncio.sleep(0)  # a peer that says much takes turns with the others
        except DecodeError as cause:
            error = f"the request is no CoordinateRequest: {cause}"
        except RefusedError as cause:
            error = f"authorization: {cause}"
        except RequestError as cause:
            error = str(cause)
        except Exception:
            # One peer's request must not end the streams of others; its own ends.
            logger.exception("peer %s: its request failed", connection.id)
            error = "internal error"
        if error:
            logger.info("peer %s: its coordination ends: %s", connection.id, error)
        self._coordinator.lose(connection, error)

    async def _write(self, stream: ServerStream, connection: Connection, changed: asyncio.Event) -> None:
        """Responses, until the connection has ended and all are sent."""
        while True:
            changed.clear()
            while (response := connection.take()) is not None:
                try:
                    async with deadline(self._clock, SEND_TIMEOUT):
                        await stream.send(response.SerializeToString())
                except TimeoutError as error:
                    raise StreamBrokenError("the peer takes no responses") from error
            if connection.ended:
                return
            await changed.wait()

    async def _stream_derp_maps(self, stream: ServerStream) -> None:
        """The map, and every other one after it; peers redial when this ends, so it does not (§3.6)."""
        sent = None
        with self._events.subscribe(TOPIC) as changes:
            while True:
                if self._derp_maps.current is not sent:
                    sent = self._derp_maps.current
                    await stream.send(self._derp_maps.message.SerializeToString())
                await changes.wait()

    async def _workspace_updates(self, stream: ServerStream, client: Client) -> None:
        data = await stream.receive()
        try:
            raw = pb.WorkspaceUpdatesRequest.FromString(data or b"").workspace_owner_id
        except DecodeError as error:
            raise RpcError(f"the request is no WorkspaceUpdatesRequest: {error}") from error
        if len(raw) != 16:
            raise RpcError(f"parse workspace owner id: invalid UUID (got {len(raw)} bytes)")
        owner = UUID(bytes=raw)
        if owner != client.user and not client.is_owner:
            raise RpcError("authorization: you do not have permission to see the workspaces of this user")
        async for update in workspaces.follow(self._database, self._events, owner):
            await stream.send(update.SerializeToString())


async def _drop_telemetry(_: bytes) -> bytes:
    return pb.TelemetryResponse().SerializeToString()


async def _unimplemented(_: bytes) -> bytes:
    raise RpcError("Unimplemented", ErrorCode.UNIMPLEMENTED)
