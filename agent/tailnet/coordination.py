"""Coordination over one connection after another: which peers there are, what they are told of this node (§3.5, §3.6).

The sections are those of tailnet.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Final
from uuid import UUID

from agent.api import methods
from agent.api.proto import tailnet_pb2 as pb
from agent.api.tailnet import write_key
from agent.clock import Clock, deadline
from agent.rpc import CallError, Duplex, RpcClient, UnsupportedError
from agent.tailnet import derp_map
from agent.tailnet.peers import Peers, describe
from agent.tailnet.tailnet import NodeState, Tailnet

logger = logging.getLogger("agent.tailnet")

GOODBYE_LIMIT: Final = 5.0
"""Seconds that the server has to end the stream after a disconnect."""
READY_LIMIT: Final = 5.0
"""Seconds after which a client begins although the agent did not say that it is ready."""
HARMLESS: Final = "ready for handshake error"

Update = pb.CoordinateResponse.PeerUpdate


class CoordinationEndedError(Exception):
    """The server ended the coordination stream; the connection is of no use without it."""


class Coordinator:
    """Keeps an agent's peers as the control plane says. They outlive any number of connections to it."""

    def __init__(self, tailnet: Tailnet, ident: UUID, clock: Clock) -> None:
        self._tailnet = tailnet
        self._ident = ident
        self._clock = clock
        self._peers = Peers(tailnet, clock)
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        """Nobody has to be told that this node goes: it was never announced, or the server took the farewell."""
        self._gone.set()

    @property
    def peers(self) -> int:
        """How many peers are known."""
        return len(self._peers)

    async def run(self, client: RpcClient) -> None:
        """The coordination routine of one connection. Raises `CoordinationEndedError`, `CallError`.

        However it ends, all peers count as lost from then on: the data path goes on without the control plane.
        Once the server has taken the farewell there is nothing more to say on any connection.
        """
        if self._stopping.is_set() and self._gone.is_set():
            return
        self._gone.clear()
        try:
            async with await client.duplex(methods.COORDINATE.path) as call, asyncio.TaskGroup() as group:
                sending = _Sending(call)
                await self._begin(sending)
                telling = group.create_task(self._tell(sending), name="tell of this node")
                tasks = [
                    telling,
                    group.create_task(self._say_goodbye(sending, telling), name="leave the tailnet"),
                    *(group.create_task(body) for body in self._beside()),
                ]
                while (message := await call.receive()) is not None:
                    response = pb.CoordinateResponse.FromString(message)
                    if response.error:
                        level = logging.INFO if response.error.startswith(HARMLESS) else logging.WARNING
                        logger.log(level, "the control plane says of coordination: %s", response.error[:500])
                    await self._take(response, sending)
                for task in tasks:
                    task.cancel()
        except* CallError as errors:
            if isinstance(errors.exceptions[0], UnsupportedError):
                self._gone.set()  # who does not coordinate need not be told anything
            raise errors.exceptions[0] from None
        finally:
            self._peers.lose_all()
        if not self._stopping.is_set():
            raise CoordinationEndedError("the control plane ended the coordination stream")
        self._gone.set()

    async def leave(self, limit: float = GOODBYE_LIMIT) -> None:
        """Tell the peers that this node goes, and wait for the server to have taken it: at most `limit` seconds.

        Where there is no connection now, the next one is used for it, also after this has returned.
        """
        self._stopping.set()
        try:
            async with deadline(self._clock, limit):
                await self._gone.wait()
        except TimeoutError:
            logger.info("the control plane did not confirm the farewell within %g s", limit)

    async def expire(self) -> None:
        """Remove lost peers in time, until cancelled (§3.5)."""
        await self._peers.expire()

    async def _tell(self, sending: _Sending) -> None:
        """Send this node's state when there is one, and whenever it changes."""
        sent: NodeState | None = None
        while True:
            sent = await self._tailnet.node_changed(sent)
            node = describe(self._tailnet, self._ident, sent, self._clock)
            await sending.send(pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=node)))

    async def _say_goodbye(self, sending: _Sending, telling: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        telling.cancel()
        # The stream is not closed here: the close might overtake the message.
        await sending.send(pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect()))

    # ---- what differs between agents and clients

    async def _begin(self, sending: _Sending) -> None:
        """Before anything else is sent."""

    def _beside(self) -> Iterable[Coroutine[None, None, None]]:
        """What goes on while the stream is read."""
        return ()

    async def _take(self, response: pb.CoordinateResponse, sending: _Sending) -> None:
        ready = []
        for update in response.peer_updates:
            if len(update.id) != 16:
                continue
            if update.kind == Update.NODE:
                self._peers.set(update.id, update.node)
                ready.append(pb.CoordinateRequest.ReadyForHandshake(id=update.id))
            elif update.kind == Update.DISCONNECTED:
                self._peers.remove(update.id)
            elif update.kind == Update.LOST:
                self._peers.lose(update.id)
        if ready:
            # Only now: the peers must be known here before they are told to begin.
            await sending.send(pb.CoordinateRequest(ready_for_handshake=ready))


class ClientCoordinator(Coordinator):
    """The same for a client of one agent: it opens the tunnel, and begins when the agent is ready for it (§3.6)."""

    def __init__(self, tailnet: Tailnet, ident: UUID, agent: UUID, clock: Clock) -> None:
        super().__init__(tailnet, ident, clock)
        self._agent = agent.bytes
        self._ready = False
        """The agent has taken this node in."""
        self._waiting: pb.Node | None = None
        """The agent's node, as long as the agent is not ready."""
        self._news = asyncio.Event()

    async def _begin(self, sending: _Sending) -> None:
        self._waiting = None
        await sending.send(pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=self._agent)))

    async def _take(self, response: pb.CoordinateResponse, sending: _Sending) -> None:
        for update in response.peer_updates:
            if update.id != self._agent:
                continue
            if update.kind == Update.NODE:
                self._take_node(update.node)
            elif update.kind == Update.READY_FOR_HANDSHAKE:
                self._ready = True
                self._go_on()
            elif update.kind == Update.DISCONNECTED:
                self._ready, self._waiting = False, None
                self._peers.remove(self._agent)
            elif update.kind == Update.LOST:
                # Should another process of the agent come, it must take this node in anew. It does so, and says so,
                # before it tells of itself.
                self._ready = False
                self._peers.lose(self._agent)

    def _take_node(self, message: pb.Node) -> None:
        known = self._peers.node(self._agent)
        self._waiting = message
        if self._ready or (known is not None and write_key(known.key) == message.key):
            self._go_on()
        else:
            self._news.set()

    def _go_on(self) -> None:
        if self._waiting is not None:
            self._peers.set(self._agent, self._waiting)
            self._waiting = None

    def _beside(self) -> Iterable[Coroutine[None, None, None]]:
        return (self._begin_anyway(),)

    async def _begin_anyway(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._clock.sleep(READY_LIMIT)
            self._go_on()


class _Sending:
    """One message at a time: several tasks send on a stream."""

    def __init__(self, call: Duplex) -> None:
        self._call = call
        self._lock = asyncio.Lock()

    async def send(self, request: pb.CoordinateRequest) -> None:
        async with self._lock:
            await self._call.send(request.SerializeToString())


async def follow_derp_map(client: RpcClient, changed: Callable[[derp_map.DerpMap], None]) -> None:
    """The DERP map routine of one connection. Raises `CoordinationEndedError`, `CallError`."""
    request = pb.StreamDERPMapsRequest().SerializeToString()
    async for message in client.stream(methods.STREAM_DERP_MAPS.path, request):
        changed(derp_map.from_message(pb.DERPMap.FromString(message)))
    raise CoordinationEndedError("the control plane ended the stream of DERP maps")
