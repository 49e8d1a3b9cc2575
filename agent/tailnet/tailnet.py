"""One node of the tailnet: an engine with sockets, relays and listeners (tailnet.md §1)."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.clock import Clock, deadline
from agent.protocol import keys, stun
from agent.protocol.ip import Datagram, Endpoint, build_udp, endpoint_text, unmapped
from agent.protocol.tcp import Connection, Limits, TcpError
from agent.tailnet.derp_dial import DialOptions
from agent.tailnet.derp_map import DerpMap
from agent.tailnet.engine import Engine, UnansweredError
from agent.tailnet.forward import TcpForwarder, UdpForwarder
from agent.tailnet.home import HomeChooser
from agent.tailnet.links import Links
from agent.tailnet.netcheck import LatencyProbe, by_region, local_addresses, stun_endpoints
from agent.tailnet.netinfo import NetInfo, StunRound, summarise
from agent.tailnet.paths import Answered
from agent.tailnet.relays import Relays
from agent.tailnet.streams import TailnetStream
from agent.tailnet.udp import UdpSocket

logger = logging.getLogger("agent.tailnet")

CHECK_PERIOD: Final = (20.0, 26.0)
"""Seconds between two network checks while somebody is being talked to."""
IDLE_CHECK: Final = 300.0
STUN_LIFETIME: Final = 310.0
HOME_LIMIT: Final = 3.0
"""Seconds that the first word about this node waits for the connection to its home relay."""
DIAL_LIMIT: Final = 30.0
MAX_PINGED: Final = 256
"""Peers whose latency is measured at once."""
FIRST_PAUSE, MAX_PAUSE = 0.05, 5.0
"""Seconds between two questions whether a peer's network answers; each pause is half as long again as the last."""
EPHEMERAL: Final = (49_152, 65_536)

Handler = Callable[[TailnetStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NodeState:
    """What others must know to reach this node. `endpoints` are texts as in a Node message."""

    home: int
    latencies: dict[str, float] = field(default_factory=dict)
    forced_websockets: dict[int, str] = field(default_factory=dict)
    endpoints: tuple[str, ...] = ()


class TailnetError(Exception):
    """A peer cannot be reached; the text says which one and why."""


class Tailnet:
    """A node with fresh keys. Start it, give it a DERP map and peers, listen and dial."""

    def __init__(
        self,
        addresses: Sequence[bytes],
        clock: Clock,
        *,
        options: DialOptions,
        direct: bool = True,
        port: int = 0,
        forward: bool = False,
        limits: Limits | None = None,
    ) -> None:
        node_private, disco_private = keys.generate(), keys.generate()
        self._clock = clock
        self._port = port
        self.engine = Engine(
            node_private=node_private,
            disco_private=disco_private,
            addresses=addresses,
            outside=self,
            inside=self,
            clock=clock,
            direct=direct,
            limits=limits,
        )
        self.relays = Relays(node_private, self.engine, clock, options=options, changed=self._relay_changed)
        self.node_key = self.engine.device.public_key
        self.disco_key = self.engine.paths.public
        self._probe = LatencyProbe(clock, options)
        self._chooser = HomeChooser(random.choice)
        self._map = DerpMap()
        self._latencies: dict[str, float] = {}
        self._sockets: dict[socket.AddressFamily, UdpSocket] = {}
        self._local: list[bytes] | None = None
        """Addresses of this machine; None before the first look."""
        self._seen: dict[Endpoint, float] = {}
        self._stun = StunRound()
        self._checked: StunRound | None = None
        self._listeners: dict[int, Handler] = {}
        self._peers: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, set[asyncio.Future[Answered]]] = {}
        self._udp_ports: dict[int, Callable[[Datagram], None]] = {}
        self._tcp_forwarder = TcpForwarder(self.engine) if forward else None
        self._udp_forwarder = UdpForwarder(self.engine, clock) if forward else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._check_now = asyncio.Event()
        self._node: NodeState | None = None
        self._node_changed = asyncio.Event()
        self._refusing = False
        self._closed = False

    # ---- life

    def start(self) -> None:
        """Open the sockets and begin; nothing is reachable before a DERP map is given."""
        self._spawn(self.engine.keep_time(), "tailnet timers")
        self._spawn(self._keep_checking(), "tailnet checks")
        self._spawn(self._watch_links(), "network interfaces")
        if self.engine.paths.direct:
            self._open_sockets()

    def refuse_all(self) -> None:
        """Reset every connection and take no new one from now on: the node is about to leave."""
        self._refusing = True
        self.engine.reset_all()

    async def aclose(self) -> None:
        """Reset every connection, close relays and sockets. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.engine.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._udp_forwarder is not None:
            await self._udp_forwarder.aclose()
        await self.relays.aclose()
        for sock in self._sockets.values():
            sock.close()
        for waiting in self._waiting.values():
            for answer in waiting:
                if not answer.done():
                    answer.set_exception(TailnetError("the node is closed"))

    # ---- what others need to know of this node

    @property
    def node(self) -> NodeState | None:
        """None until there is a home region."""
        return self._node

    async def node_changed(self, known: NodeState | None) -> NodeState:
        """Wait until the node's state is another than `known`."""
        while self._node is None or self._node == known:
            await self._node_changed.wait()
        return self._node

    def net_info(self) -> NetInfo | None:
        """What the last network check found out; None before the first."""
        if self._checked is None:
            return None
        return summarise(self.relays.home, self._latencies, self._checked, ipv6_socket=socket.AF_INET6 in self._sockets)

    def _refresh_node(self, *, unconnected: bool = False) -> None:
        home = self.relays.home
        # A node that is told before its relay connection is up loses the first handshake, which costs a peer 5 s.
        if not home or (self._node is None and not unconnected and not self.relays.connected(home)):
            return
        now = self._clock.now()
        endpoints: list[Endpoint] = []
        if self.engine.paths.direct:
            self._seen = {end: seen for end, seen in self._seen.items() if now - seen < STUN_LIFETIME}
            endpoints = list(self._seen)
            for address in self._local or ():
                family = socket.AF_INET if len(unmapped(address)) == 4 else socket.AF_INET6
                if (sock := self._sockets.get(family)) is not None:
                    endpoints.append((address, sock.port))
        self.engine.paths.set_own_endpoints(endpoints)
        texts = tuple(dict.fromkeys(map(endpoint_text, endpoints)))
        node = NodeState(home, dict(self._latencies), self.relays.forced_websockets, texts)
        if self._node is None or (node.home, node.forced_websockets, node.endpoints) != (
            self._node.home,
            self._node.forced_websockets,
            self._node.endpoints,
        ):
            self._node = node
            self._node_changed.set()
            self._node_changed = asyncio.Event()

    # ---- relays and peers

    def update_derp_map(self, derp_map: DerpMap) -> None:
        """Other relays (§3.5): equal maps are ignored; a home that is gone is chosen anew."""
        if self._map.regions and derp_map.same_relays(self._map):
            return
        self._map = derp_map
        self.relays.set_map(derp_map)
        able = [number for number, region in derp_map.regions.items() if region.relays]
        if not self.relays.home and len(able) == 1:
            # Nothing to choose: what is measured is only for others to see.
            self.relays.set_home(able[0])
            self._refresh_node()
        self._check_now.set()

    def set_direct(self, direct: bool) -> None:
        """Allow or forbid direct paths; streams go on either way."""
        if direct == self.engine.paths.direct:
            return
        self.engine.paths.set_direct(direct)
        if direct:
            self._open_sockets()
            self._check_now.set()
        else:
            for sock in self._sockets.values():
                sock.close()
            self._sockets.clear()
            self._seen.clear()
        self._refresh_node()

    def set_force_websockets(self, force: bool) -> None:
        """Whether relays are reached over WebSockets only; streams go on either way."""
        self.relays.set_force_websockets(force)

    def set_peer(
        self, node_key: bytes, disco_key: bytes, addresses: Iterable[bytes], home: int, endpoints: Iterable[Endpoint]
    ) -> None:
        """Make a peer known or replace what is known of it. Raises `ValueError` for keys that cannot be used."""
        addresses = tuple(addresses)
        self.engine.set_peer(node_key, disco_key, addresses, home, endpoints if self.engine.paths.direct else ())
        self._peers = {address: key for address, key in self._peers.items() if key != node_key}
        self._peers.update(dict.fromkeys(addresses, node_key))

    def remove_peer(self, node_key: bytes) -> None:
        """Forget a peer."""
        self.engine.remove_peer(node_key)
        self._peers = {address: key for address, key in self._peers.items() if key != node_key}

    # ---- using it

    def listen_tcp(self, port: int, handler: Handler) -> None:
        """Serve connections to a port; the stream is closed when the handler returns."""
        self._listeners[port] = handler

    async def dial_tcp(
        self, address: bytes, port: int, timeout: float = DIAL_LIMIT, allowed: int | None = None
    ) -> TailnetStream:
        """A connection to a peer, which may send as many bytes as `allowed` until `TailnetStream.allow` says more.

        Raises `TailnetError` when it is not there within `timeout` seconds or refuses.
        """
        where = f"[{ipaddress.IPv6Address(address)}]:{port}"
        if address not in self._peers:
            raise TailnetError(f"{where}: no such peer")
        stream = self.engine.dial(address, port, allowed)
        try:
            async with deadline(self._clock, timeout):
                await stream.connected()
        except (TimeoutError, TcpError) as error:
            stream.abort()
            reason = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else str(error)
            raise TailnetError(f"{where}: {reason}") from error
        except BaseException:
            stream.abort()
            raise
        return stream

    async def reach(self, address: bytes, timeout: float = DIAL_LIMIT) -> float:
        """Seconds that a peer's network took to answer (TSMP), asked ever more rarely until it does. An answer counts
        also when later questions are on their way, so that a long round trip is waited for only once (§1.3).

        Raises `TailnetError`.
        """
        pings: list[asyncio.Task[float]] = []
        pause = FIRST_PAUSE
        try:
            async with deadline(self._clock, timeout):
                while True:
                    pings.append(asyncio.create_task(self.engine.ping(address), name="ping"))
                    try:
                        async with deadline(self._clock, pause * random.uniform(0.5, 1.5)):  # noqa: S311 - no secret
                            done, _ = await asyncio.wait(pings, return_when=asyncio.FIRST_COMPLETED)
                        return done.pop().result()
                    except TimeoutError:
                        pause = min(pause * 1.5, MAX_PAUSE)
        except TimeoutError as error:
            raise TailnetError(f"{ipaddress.IPv6Address(address)}: no answer within {timeout:g} s") from error
        except UnansweredError as error:
            raise TailnetError(f"{ipaddress.IPv6Address(address)}: {error}") from error
        finally:
            for ping in pings:
                ping.cancel()
            await asyncio.gather(*pings, return_exceptions=True)

    async def ping(self, address: bytes, timeout: float = 5.0) -> Answered:
        """A disco ping: how long the peer takes to answer, and on which way. Raises `TailnetError`."""
        key = self._peers.get(address)
        if key is None:
            raise TailnetError(f"{ipaddress.IPv6Address(address)}: no such peer")
        try:
            return await self._ping(key, timeout)
        except TimeoutError as error:
            raise TailnetError(f"{ipaddress.IPv6Address(address)}: no answer within {timeout:g} s") from error

    async def latencies(self, timeout: float = 5.0) -> list[float]:
        """Seconds that the peers took to answer a disco ping which something was sent to lately; at most MAX_PINGED
        are asked, and those that did not answer within `timeout` seconds are left out."""
        active = self.engine.paths.active(self._clock.now())[:MAX_PINGED]
        found = await asyncio.gather(*(self._latency(key, timeout) for key in active))
        return [latency for latency in found if latency is not None]

    async def _latency(self, key: bytes, timeout: float) -> float | None:
        try:
            return (await self._ping(key, timeout)).latency
        except (TimeoutError, TailnetError):  # it does not answer, or the node is being closed
            return None

    async def _ping(self, key: bytes, timeout: float) -> Answered:
        answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(answer)
        try:
            self.engine.ping_paths(key)
            async with deadline(self._clock, timeout):
                return await answer
        finally:
            waiting.discard(answer)
            if not waiting:
                self._waiting.pop(key, None)

    def open_udp(self, receive: Callable[[Datagram], None]) -> int:
        """A UDP port of this node's own: `receive` gets what peers send there. Raises `TailnetError`: none is free."""
        for _ in range(64):
            port = random.randrange(*EPHEMERAL)  # noqa: S311 - others are sealed off by WireGuard
            if port not in self._udp_ports:
                self._udp_ports[port] = receive
                return port
        raise TailnetError("no UDP port is free")

    def send_datagram(self, local_port: int, address: bytes, port: int, payload: bytes) -> None:
        """UDP to a peer, at most `agent.protocol.ip.MAX_UDP_PAYLOAD` bytes. It may be lost, as UDP is."""
        source = next((own for own in self.engine.addresses if own[:6] == address[:6]), self.engine.addresses[0])
        self.engine.send_packet(build_udp(Datagram(source, local_port, address, port, payload)))

    def close_udp(self, local_port: int) -> None:
        """Give the port back."""
        self._udp_ports.pop(local_port, None)

    # ---- Outside

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        family = socket.AF_INET if len(unmapped(endpoint[0])) == 4 else socket.AF_INET6
        if (sock := self._sockets.get(family)) is not None:
            sock.send(endpoint, datagrams)

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        self.relays.send(region, peer, datagrams)

    # ---- Inside

    def incoming(self, connection: Connection) -> None:
        if self._refusing:
            self.engine.refuse(connection)
        elif connection.local_port in self._listeners:
            self.engine.accept(connection)
        elif self._tcp_forwarder is not None:
            self._spawn(self._tcp_forwarder.forward(connection), f"forward to port {connection.local_port}")
        else:
            self.engine.refuse(connection)

    def connected(self, stream: TailnetStream) -> None:
        handler = self._listeners.get(stream.local_port)
        if handler is not None:
            self._spawn(self._serve(handler, stream), f"service at port {stream.local_port}")

    async def _serve(self, handler: Handler, stream: TailnetStream) -> None:
        try:
            await handler(stream)
        except TcpError:
            pass  # the peer went away; the handler's business is over
        except Exception:
            # One connection's defect must not end the node; it is logged with its trace.
            logger.exception("the service at port %d failed", stream.local_port)
            stream.abort()
        finally:
            stream.close()

    def udp(self, datagram: Datagram) -> None:
        if (receive := self._udp_ports.get(datagram.destination_port)) is not None:
            receive(datagram)
        elif self._udp_forwarder is not None:
            self._udp_forwarder.take(datagram)

    def stun(self, response: stun.Response) -> None:
        if self._stun.take(response):
            self._seen[response.endpoint] = self._clock.now()
            self._refresh_node()

    def answered(self, answered: Answered) -> None:
        for answer in self._waiting.get(answered.peer, ()):
            if not answer.done():
                answer.set_result(answered)

    # ---- the surroundings

    def _open_sockets(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self._sockets[family] = self._open_socket(family)
            except OSError as error:
                logger.info("no UDP over %s: %s", family.name, error)
        if not self._sockets:
            logger.warning("no UDP at all: peers are reached through relays only")

    def _open_socket(self, family: socket.AddressFamily) -> UdpSocket:
        try:
            return UdpSocket(family, self._port, self.engine.receive_udp)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES) or not self._port:
                raise
            logger.warning("UDP port %d is not to be had (%s): another one is used", self._port, error.strerror)
            return UdpSocket(family, 0, self.engine.receive_udp)

    def _relay_changed(self) -> None:
        home = self.relays.home
        if home and not self.relays.connected(home):
            self._check_now.set()
        self._refresh_node()

    async def _watch_links(self) -> None:
        try:
            links = Links(self._clock)
        except OSError as error:
            logger.info("changes of the network are noticed late: the kernel does not tell them (%s)", error)
            return
        try:
            while True:
                await links.changed()
                await self._look_at_links()
        finally:
            links.close()

    async def _look_at_links(self) -> None:
        """Read this machine's addresses. If they are others than before, nothing is known for certain any more: no
        path, no relay connection, and not what the outside sees (§6.4)."""
        before, self._local = self._local, await asyncio.to_thread(local_addresses)
        if before is None or set(before) == set(self._local):
            return
        logger.info("the network has changed")
        self.engine.paths.link_changed()
        self._seen.clear()
        self._refresh_node()
        self._check_now.set()
        self._spawn(self.relays.verify(), "relays after a change of the network")

    async def _keep_checking(self) -> None:
        while True:
            self._check_now.clear()
            if self._map.regions:
                try:
                    await self._check()
                except Exception:
                    # Without knowledge of its surroundings a node still works; the next check may tell more.
                    logger.exception("the network check failed")
            active = bool(self.engine.paths.active(self._clock.now()))
            pause = random.uniform(*CHECK_PERIOD) if active else IDLE_CHECK  # noqa: S311 - spreads load
            await self._asked_within(pause)

    async def _asked_within(self, seconds: float) -> None:
        try:
            async with deadline(self._clock, seconds):
                await self._check_now.wait()
        except TimeoutError:
            return
        # What asks often (a relay that is down) must not make this spin.
        await self._clock.sleep(1.0)

    async def _check(self) -> None:
        """One network check (§5.10): STUN is sent and not waited for, then the relays are measured."""
        self._stun = StunRound()
        if self.engine.paths.direct:
            await self._look_at_links()
            await self._send_stun()
        self._latencies = await self._probe.measure(self._map)
        now = self._clock.now()
        home = self._chooser.home(self._map, by_region(self._latencies), self.relays.home, now)
        self.relays.set_home(home)
        await self.relays.home_connected(HOME_LIMIT)
        self._checked = self._stun
        self._refresh_node(unconnected=True)

    async def _send_stun(self) -> None:
        for region in self._map.regions.values():
            for node in region.nodes:
                for family, endpoint in await stun_endpoints(node):
                    if (sock := self._sockets.get(family)) is not None:
                        sock.send(endpoint, (self._stun.ask(endpoint),))

    def _spawn(self, body: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(body, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a part of the tailnet ended: %s", task.get_name(), exc_info=error)
