"""One relay region as a client sees it: a connection that is kept up, and what may wait for it (tailnet.md §5.1-5.5).

Two kinds of wires carry it: a bare stream after `Upgrade: DERP`, and a WebSocket. Both *take* what there is to send
when they can send it, so that there is one queue, with one bound.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from agent.clock import Clock, deadline, wait_for
from agent.protocol.derp import (
    MAX_CLIENT_FRAME,
    ClientSession,
    DerpError,
    Health,
    LoggedIn,
    Packets,
    PeerGone,
    PongReceived,
)
from agent.protocol.keys import Random
from agent.proxy import ProxyError, proxy_for
from agent.tailnet.derp_dial import (
    DialError,
    DialOptions,
    Stream,
    Tls,
    UpgradeRefusedError,
    check_certificate,
    dial,
    url,
)
from agent.tailnet.derp_map import Region

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT: Final = 10.0
"""For everything from name resolution to the end of the login."""
READ_TIMEOUT: Final = 120.0
PING_TIMEOUT: Final = 5.0
CLOSE_TIMEOUT: Final = 0.5
"""For the closing handshake of a WebSocket, which tells a relay at once that this client is gone."""
QUEUE: Final = 256
"""Datagrams that wait for a connection, or for one that is slow."""
RECONNECT_STEP: Final = 0.01
RECONNECT_CAP: Final = 5.0
BATCH: Final = 256 * 1024
"""Bytes of one write to a bare stream."""
MAX_MESSAGE: Final = 32 * 1024
"""Bytes of a WebSocket message that we send: relays of 2024 take no larger ones."""
SUBPROTOCOL: Final = "derp"

logger = logging.getLogger("agent.tailnet.derp")


class DerpOwner(Protocol):
    """Who uses a client. All three are called on the loop and must not block."""

    def derp_packets(self, region: int, packets: Packets) -> None:
        """Datagrams with the node keys of their senders, as they came in one piece."""

    def derp_peer_gone(self, region: int, key: bytes) -> None:
        """The peer is not, or not any more, on this region's relay."""

    def derp_changed(self, region: int) -> None:
        """The client connected, lost its connection, failed to connect, or went over to WebSockets."""


@dataclass(slots=True)
class DerpCounters:
    connects: int = 0
    failures: int = 0
    sent: int = 0
    received: int = 0
    dropped_full: int = 0
    """Found the queue full."""
    dropped_rate: int = 0
    """Above the rate that the relay asked for."""


def reconnect_delay(failures: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after so many failures in a row (§5.5)."""
    return min(RECONNECT_STEP * failures**2, RECONNECT_CAP) * uniform(0.5, 1.5)


class DerpClient:
    """`run` keeps the connection up until it is cancelled; everything else may be called at any time."""

    def __init__(
        self,
        region: Region,
        private_key: bytes,
        owner: DerpOwner,
        clock: Clock,
        *,
        home: bool,
        tls: Tls,
        options: DialOptions,
        uniform: Callable[[float, float], float] = random.uniform,
        entropy: Random = os.urandom,
    ) -> None:
        self.region = region
        self._private_key, self._owner, self._clock = private_key, owner, clock
        self._home = home
        self._tls, self._options = tls, options
        self._uniform, self._entropy = uniform, entropy
        self._websocket = options.force_websockets
        self._session: ClientSession | None = None
        self._wire: _Wire | None = None
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._woken = False
        self._pings: dict[bytes, asyncio.Future[float]] = {}
        self._failures = 0
        self._last_received = 0.0
        self._connected = asyncio.Event()
        self.last_write = clock.now()
        """When something was last given to `send`; connections that nobody uses are closed by their owner."""
        self.forced_websocket = ""
        """Why the upgrade does not get through to this region; for the node that others read."""
        self.error: Exception | None = None
        """Why there is no connection."""
        self.counters = DerpCounters()

    @property
    def connected(self) -> bool:
        """Whether the relay has taken the login in."""
        return self._connected.is_set()

    @property
    def over_websocket(self) -> bool:
        return self._websocket

    async def wait_connected(self) -> None:
        """Until there is a connection; it may be gone again."""
        await self._connected.wait()

    def send(self, destination: bytes, datagrams: Sequence[bytes]) -> int:
        """Queue datagrams for the peer with that node key; returns how many found room."""
        self.last_write = self._clock.now()
        queue = self._queue
        for index, datagram in enumerate(datagrams):
            if len(queue) >= QUEUE:
                if self._wire is not None:
                    self._wire.flush()
                if len(queue) >= QUEUE:
                    self.counters.dropped_full += len(datagrams) - index
                    return index
            queue.append((destination, datagram))
        self._wake()
        return len(datagrams)

    def set_home(self, home: bool) -> None:
        """Whether this region is the process's home; the relay is told."""
        self._home = home
        if self._session is not None:
            self._session.set_home(home)
            self._wake()

    async def ping(self, timeout: float = PING_TIMEOUT) -> float:
        """Seconds that the relay takes to answer. Raises `TimeoutError`, `DialError` where there is no connection."""
        if self._session is None or not self.connected:
            raise DialError(f"there is no connection to region {self.region.id}")
        data = self._entropy(8)
        began = self._clock.now()
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pings[data] = answer
        try:
            self._session.ping(data)
            self._wake()
            return await wait_for(self._clock, answer, timeout) - began
        finally:
            del self._pings[data]

    async def verify(self) -> None:
        """Ask the relay for a sign of life, and connect anew where none comes: after a change of the network, instead
        of when `READ_TIMEOUT` has passed."""
        wire = self._wire
        try:
            await self.ping()
        except TimeoutError:
            if wire is not None and wire is self._wire:
                wire.fail(DialError(f"the relay did not answer within {PING_TIMEOUT:.0f} s"))
        except DialError:
            return  # it is being connected anew already

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._connect_and_serve()
                error: Exception = DialError("the relay closed the connection")
            except (DialError, DerpError) as failure:
                error = failure
            self.error = error
            self._failures += 1
            self.counters.failures += 1
            logger.info("relay region %d: %s", self.region.id, error)
            self._owner.derp_changed(self.region.id)
            await self._clock.sleep(reconnect_delay(self._failures, self._uniform))

    def take(self, limit: int) -> list[bytes]:
        """What a wire is to write: frames of about `limit` bytes; none when there is nothing, and it is woken later."""
        session = self._session
        if session is None:
            return []
        frames = session.data_to_send()
        queue = self._queue
        if queue and session.greeted:
            limit -= sum(map(len, frames))
            now, counters = self._clock.now(), self.counters
            while queue and limit > 0:
                frame = session.packet(*queue.popleft(), now)
                if frame:
                    frames.append(frame)
                    limit -= len(frame)
                    counters.sent += 1
                else:
                    counters.dropped_rate += 1
        self._woken = bool(frames)
        return frames

    def receive(self, data: bytes) -> None:
        """What a wire read. A relay that breaks a rule loses the connection."""
        session, wire = self._session, self._wire
        if session is None or wire is None:
            return
        self._last_received = self._clock.now()
        try:
            packets, events = session.receive(data)
        except DerpError as error:
            wire.fail(error)
            return
        if self.connected:
            self._failures = 0
        for event in events:
            if isinstance(event, PeerGone):
                self._owner.derp_peer_gone(self.region.id, event.key)
            elif isinstance(event, PongReceived):
                waiting = self._pings.get(event.data)
                if waiting is not None and not waiting.done():
                    waiting.set_result(self._last_received)
            elif isinstance(event, Health):
                logger.warning("relay region %d says: %s", self.region.id, event.problem or "all is well again")
            elif isinstance(event, LoggedIn):
                self._connected.set()
        if session.has_data_to_send:
            self._wake()
        if packets:
            self.counters.received += len(packets)
            self._owner.derp_packets(self.region.id, packets)

    def _wake(self) -> None:
        if not self._woken and self._wire is not None:
            self._woken = True
            self._wire.wake()

    async def _connect_and_serve(self) -> None:
        """Raises `DialError`, `DerpError`; returns when the relay ended the connection in order."""
        wire: _Wire | None = None
        try:
            try:
                async with deadline(self._clock, CONNECT_TIMEOUT):
                    wire = await self._open()
                    await self._login_or_end(wire)
            except TimeoutError as error:
                raise DialError(f"no login within {CONNECT_TIMEOUT:.0f} s") from error
            if self.connected:
                self.counters.connects += 1
                self.error = None
                self._owner.derp_changed(self.region.id)
            await self._serve(wire)
        finally:
            self._wire = self._session = None
            self._connected.clear()
            self._woken = False
            for waiting in self._pings.values():
                if not waiting.done():
                    waiting.set_exception(DialError("the connection ended"))
            if wire is not None:
                await wire.aclose()

    async def _login_or_end(self, wire: _Wire) -> None:
        waits = [asyncio.create_task(wire.closed.wait()), asyncio.create_task(self._connected.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _open(self) -> _Wire:
        nodes = self.region.relays
        if not nodes:
            raise DialError(f"region {self.region.id} has no relay, only STUN servers")
        wire: _Wire
        if self._websocket:
            wire = await _WebSocketWire.open(self, self._options, self._tls)
        else:
            try:
                wire = _StreamWire(self, await dial(nodes, self._options, self._tls, self._clock))
            except UpgradeRefusedError as error:
                self._websocket = True
                self.forced_websocket = str(error)
                raise
        self._session = ClientSession(self._private_key, home=self._home, random=self._entropy)
        self._last_received = self._clock.now()
        self._wire = wire
        wire.start()
        return wire

    async def _serve(self, wire: _Wire) -> None:
        while not wire.closed.is_set():
            left = self._last_received + READ_TIMEOUT - self._clock.now()
            if left <= 0:
                raise DialError(f"the relay said nothing for {READ_TIMEOUT:.0f} s")
            with suppress(TimeoutError):
                await wait_for(self._clock, wire.closed.wait(), left)
        if wire.error is not None:
            raise wire.error


class _Wire(Protocol):
    """What carries the bytes of one connection. Takes from its client and gives to it."""

    @property
    def closed(self) -> asyncio.Event:
        """Set when the connection is over."""

    @property
    def error(self) -> DialError | DerpError | None:
        """What broke it; None where the relay closed it in order."""

    def start(self) -> None: ...

    def wake(self) -> None:
        """There is something to take."""

    def flush(self) -> bool:
        """Take and write at once; False where that is not possible, or there is nothing."""

    def fail(self, error: DialError | DerpError) -> None:
        """Cut the connection off because of `error`."""

    async def aclose(self) -> None: ...


class _StreamWire:
    """A bare stream."""

    def __init__(self, client: DerpClient, stream: Stream) -> None:
        self._client, self._stream = client, stream
        self._loop = asyncio.get_running_loop()
        self._failure: DialError | DerpError | None = None

    @property
    def closed(self) -> asyncio.Event:
        return self._stream.closed

    @property
    def error(self) -> DialError | DerpError | None:
        if self._failure is None and self._stream.error is not None:
            return DialError(f"the connection broke: {self._stream.error}")
        return self._failure

    def start(self) -> None:
        self._stream.attach(self._client.receive, self._write_all)

    def wake(self) -> None:
        if not self._stream.paused:
            self._loop.call_soon(self._write_all)

    def flush(self) -> bool:
        stream = self._stream
        if stream.paused or stream.transport.is_closing():
            return False
        frames = self._client.take(BATCH)
        if frames:
            stream.transport.write(b"".join(frames))
        return bool(frames)

    def fail(self, error: DialError | DerpError) -> None:
        self._failure = error
        self._stream.transport.abort()

    async def aclose(self) -> None:
        self._stream.transport.abort()
        await self._stream.closed.wait()

    def _write_all(self) -> None:
        while self.flush():
            pass


class _WebSocketWire:
    """Binary messages; where they end means nothing (§5.2)."""

    def __init__(
        self, client: DerpClient, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse
    ) -> None:
        self._client, self._http, self._socket = client, http, socket
        self._pending = asyncio.Event()
        self.closed = asyncio.Event()
        self.error: DialError | DerpError | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, client: DerpClient, options: DialOptions, tls: Tls) -> _WebSocketWire:
        """To the region's first relay. Raises `DialError`."""
        import aiohttp

        node = client.region.relays[0]
        target = url(node)
        context = None if node.force_http else await tls.context(node)
        http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        try:
            socket = await http.ws_connect(
                target,
                protocols=(SUBPROTOCOL,),
                headers=options.headers,
                ssl=True if context is None else context,
                proxy=proxy_for(target, options.environment),
                max_msg_size=MAX_CLIENT_FRAME + 1,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
            )
            try:
                session = socket.get_extra_info("ssl_object")
                if session is not None:
                    check_certificate(node, session.getpeercert())
            except DialError:
                await socket.close()
                raise
        except (aiohttp.ClientError, OSError, ProxyError) as error:
            await http.close()
            raise DialError(f"WebSocket to {target}: {error}") from error
        except BaseException:
            await http.close()
            raise
        return cls(client, http, socket)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._read(), name="relay reader"),
            asyncio.create_task(self._write(), name="relay writer"),
        ]

    def wake(self) -> None:
        self._pending.set()

    def flush(self) -> bool:
        return False

    def fail(self, error: DialError | DerpError) -> None:
        if not self.closed.is_set():
            self.error = error
            self.closed.set()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.close()
        await self._http.close()

    async def _read(self) -> None:
        import aiohttp

        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                self._client.receive(bytes(message.data))
            elif message.type is aiohttp.WSMsgType.TEXT:
                self.fail(DerpError("the relay sent a text message"))
                return
            else:
                break
        code, error = self._socket.close_code, self._socket.exception()
        if error is not None or code not in (1000, 1001):
            self.fail(DialError(f"the WebSocket broke: {error or f'code {code}'}"))
        self.closed.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._pending.wait()
                self._pending.clear()
                while frames := self._client.take(MAX_MESSAGE):
                    data = b"".join(frames)
                    for at in range(0, len(data), MAX_MESSAGE):
                        await self._socket.send_bytes(data[at : at + MAX_MESSAGE])
        except (OSError, RuntimeError) as error:
            self.fail(DialError(f"the WebSocket broke: {error}"))
