"""The heart of a tailnet node: datagrams in, inner packets, connections, datagrams out (tailnet.md §1).

It owns no socket: what is to be sent goes to an `Outside`, and what arrived is handed in. All work of a batch is done
in one pass: open all, feed TCP, collect what it wants to send, seal all, send.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agent.clock import Clock
from agent.protocol import disco, ip, stun
from agent.protocol.ip import Datagram, Endpoint
from agent.protocol.tcp import (
    Closed,
    Connected,
    Connection,
    Event,
    Incoming,
    Limits,
    PeerClosed,
    Readable,
    TcpStack,
    Writable,
)
from agent.protocol.wireguard import Device, Peer
from agent.tailnet.flows import Flows
from agent.tailnet.paths import Answered, Paths, Send
from agent.tailnet.streams import TailnetStream

HELD_FOR: Final = 5.0
"""Seconds that the first message of a peer waits which coordination has not named yet (§5.5)."""
MAX_HELD: Final = 256
MAX_TSMP: Final = 4096
INITIATION_SIZE: Final = 148
BATCH: Final = 64


class UnansweredError(Exception):
    """Nobody waits for the answer to a ping any more; the text says why."""


class Outside(Protocol):
    """Where datagrams go. Neither call blocks; what finds no room is dropped and counted there."""

    def send_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        """Directly."""

    def send_relay(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        """Through a relay, to the peer with that node key."""


class Inside(Protocol):
    """What a node does with what its peers want."""

    def incoming(self, connection: Connection) -> None:
        """A peer asks for a TCP connection: `accept` or `refuse` it."""

    def connected(self, stream: TailnetStream) -> None:
        """A connection that was accepted is established."""

    def udp(self, datagram: Datagram) -> None:
        """A UDP datagram for one of the node's addresses."""

    def stun(self, response: stun.Response) -> None:
        """A STUN server told how it sees the node."""

    def answered(self, answered: Answered) -> None:
        """A peer answered a disco ping."""


@dataclass(slots=True)
class EngineCounters:
    """Datagrams and packets that came to nothing, and what went through."""

    unbound: int = 0
    """WireGuard datagrams over UDP from an endpoint that no peer has proven."""
    unknown_relayed: int = 0
    """Datagrams through a relay from a node key that is no peer's."""
    malformed: int = 0
    foreign: int = 0
    """Inner packets to an address that is not the node's."""
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0


class Engine:
    """One node. `addresses` are its own, 16 bytes each, the first is the source of what it dials."""

    def __init__(
        self,
        *,
        node_private: bytes,
        disco_private: bytes,
        addresses: Sequence[bytes],
        outside: Outside,
        inside: Inside,
        clock: Clock,
        direct: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        self._outside = outside
        self._inside = inside
        self._clock = clock
        self.device = Device(node_private)
        self.paths = Paths(disco_private, self.device.public_key, direct=direct)
        self.stack = TcpStack(addresses, limits=limits)
        self._streams: dict[Connection, TailnetStream] = {}
        self._accepted: set[Connection] = set()
        self._ways: dict[bytes, Endpoint | int | None] = {}
        """How each peer was reached last: its endpoint, or the number of a relay's region."""
        self._packets: list[bytes] = []
        self._held: OrderedDict[bytes, tuple[float, bytes, int]] = OrderedDict()
        self._tsmp: dict[bytes, asyncio.Future[None]] = {}
        self._tsmp_number = 0
        self._flush_due = False
        self._timer_wake = asyncio.Event()
        self._armed: float | None = None
        self.counters = EngineCounters()
        self.flows = Flows()

    # ---- peers

    def set_peer(
        self, node_key: bytes, disco_key: bytes, addresses: Iterable[bytes], home: int, endpoints: Iterable[Endpoint]
    ) -> Peer:
        """Make a peer known or replace what is known of it (§3.5). Raises `ValueError` for keys that cannot be used.

        A peer whose disco key changed is another process: its sessions are dropped.
        """
        known = self.paths.knows(node_key, disco_key)
        peer = self.device.add_peer(node_key, addresses)
        self.paths.set_peer(node_key, disco_key, home, endpoints)
        if known is False:
            self.device.forget_keys(node_key)
        held = self._held.pop(node_key, None)
        now = self._clock.now()
        if held is not None and now - held[0] <= HELD_FOR:
            self._wireguard([held[1]], now, node_key)
        self.flush()
        return peer

    def remove_peer(self, node_key: bytes) -> None:
        """Forget a peer and its sessions; its connections end: who comes back under its addresses is another."""
        peer = self.device.peer(node_key)
        if peer is not None:
            for connection, stream in list(self._streams.items()):
                if connection.remote_address in peer.addresses and not connection.ended:
                    stream.abort("the peer left the network")
        self.device.remove_peer(node_key)
        self.paths.remove_peer(node_key)
        self._ways.pop(node_key, None)

    # ---- what arrives

    def receive_udp(self, endpoint: Endpoint, datagrams: Sequence[bytes]) -> None:
        """Datagrams from one UDP endpoint, in order."""
        now = self._clock.now()
        sealed = []
        for datagram in datagrams:
            if stun.is_stun(datagram):
                if (response := stun.parse_response(datagram)) is not None:
                    self._inside.stun(response)
            elif disco.is_disco(datagram):
                self._disco(datagram, now, endpoint, 0, b"")
            else:
                sealed.append(datagram)
        if sealed:
            if self.paths.direct and self.paths.sender_of(endpoint) is not None:
                self._wireguard(sealed, now, endpoint[0] + endpoint[1].to_bytes(2, "big"), endpoint)
            else:
                self.counters.unbound += len(sealed)
        self.flush()

    def receive_relay(self, region: int, packets: Iterable[tuple[bytes, bytes]]) -> None:
        """Datagrams from a relay, each with the node key of its sender."""
        now = self._clock.now()
        source, sealed = b"", list[bytes]()
        for key, datagram in packets:
            if disco.is_disco(datagram):
                self._disco(datagram, now, None, region, key)
            elif self.device.peer(key) is None:
                self._hold(key, datagram, region, now)
            else:
                if key != source and sealed:
                    self._wireguard(sealed, now, source)
                    sealed = []
                source = key
                sealed.append(datagram)
        if sealed:
            self._wireguard(sealed, now, source)
        self.flush()

    def _hold(self, key: bytes, datagram: bytes, region: int, now: float) -> None:
        """The server's tailnet may initiate before coordination has named it here (§5.5)."""
        if len(datagram) != INITIATION_SIZE or datagram[0] != 1:
            self.counters.unknown_relayed += 1
            return
        self._held.pop(key, None)
        while len(self._held) >= MAX_HELD:
            self._held.popitem(last=False)
        self._held[key] = (now, datagram, region)

    def _disco(self, datagram: bytes, now: float, endpoint: Endpoint | None, region: int, relayed: bytes) -> None:
        outcome = self.paths.receive(datagram, now, endpoint, region, relayed)
        self._emit(outcome.send)
        if outcome.answered is not None:
            self._inside.answered(outcome.answered)

    def _wireguard(self, datagrams: list[bytes], now: float, source: bytes, endpoint: Endpoint | None = None) -> None:
        received = self.device.receive(datagrams, now, self._clock.wall(), source)
        for peer, output in received.output:
            self._transmit(peer, output, now)
        if received.replies:
            if endpoint is not None:
                self._outside.send_udp(endpoint, received.replies)
            else:
                self._outside.send_relay(self.paths.home_of(source), source, received.replies)
        segments: list[bytes] = []
        for _, packets in received.packets:
            self.counters.rx_packets += len(packets)
            self.flows.received(packets)
            for packet in packets:
                self.counters.rx_bytes += len(packet)
                if packet[6] == ip.TCP:
                    segments.append(packet)
                else:
                    self._other(packet)
        if segments:
            self._tcp_events(self.stack.receive(segments, now))

    def _other(self, packet: bytes) -> None:
        if ip.destination(packet) not in self.addresses:
            self.counters.foreign += 1
            return
        protocol = ip.next_header(packet)
        reply: bytes | None = None
        if protocol == ip.TSMP:
            if (data := ip.parse_tsmp_pong(packet)) is not None:
                waiting = self._tsmp.pop(data, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
                return
            reply = ip.tsmp_pong(packet)
        elif protocol == ip.ICMPV6:
            reply = ip.echo_reply(packet)
        elif protocol == ip.UDP and (datagram := ip.parse_udp(packet)) is not None:
            self._inside.udp(datagram)
            return
        if reply is None:
            self.counters.malformed += 1
        else:
            self._packets.append(reply)

    # ---- TCP

    def dial(self, destination: bytes, port: int, allowed: int | None = None) -> TailnetStream:
        """Begin a connection; wait for its `connected()`. `allowed`: see `TailnetStream.allow`."""
        source = next((own for own in self.addresses if own[:6] == destination[:6]), self.addresses[0])
        connection = self.stack.connect(source, destination, port, self._clock.now())
        if allowed is not None:
            connection.allow(allowed)
        stream = self._streams[connection] = TailnetStream(connection, self.flush_soon)
        self.flush_soon()
        return stream

    def connected_addresses(self) -> set[bytes]:
        """Whom there are connections with, also such as are being made or ended."""
        return {connection.remote_address for connection in self._streams}

    def accept(self, connection: Connection) -> TailnetStream:
        """Take an incoming connection; `Inside.connected` follows when the handshake is over."""
        connection.accept()
        stream = self._streams[connection] = TailnetStream(connection, self.flush_soon)
        self._accepted.add(connection)
        self.flush_soon()
        return stream

    def refuse(self, connection: Connection) -> None:
        """Answer an incoming connection with RST."""
        connection.refuse()
        self.flush_soon()

    def _tcp_events(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Incoming):
                self._inside.incoming(event.connection)
                continue
            stream = self._streams.get(event.connection)
            if stream is None:
                continue
            match event:
                case Readable() | PeerClosed():
                    stream.on_readable()
                case Writable():
                    stream.on_writable()
                case Connected():
                    stream.on_connected()
                    if event.connection in self._accepted:
                        self._accepted.discard(event.connection)
                        self._inside.connected(stream)
                case Closed():
                    del self._streams[event.connection]
                    self._accepted.discard(event.connection)
                    stream.ended(event.error)

    # ---- what is sent

    def send_packet(self, packet: bytes) -> None:
        """An inner packet of another protocol than TCP."""
        self._packets.append(packet)
        self.flush_soon()

    def flush_soon(self) -> None:
        """`flush` once the tasks that are ready have run: what they write goes out together."""
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send everything that may be sent now."""
        self._flush_due = False
        now, wall = self._clock.now(), self._clock.wall()
        while True:
            packets, self._packets = self._packets, []
            packets += self.stack.packets_to_send(now, BATCH)
            if not packets:
                break
            self.counters.tx_packets += len(packets)
            self.counters.tx_bytes += sum(map(len, packets))
            self.flows.sent(packets)
            for peer, datagrams in self.device.send(packets, now, wall):
                self._transmit(peer, datagrams, now)
        due = self.next_timeout()
        if due is not None and (self._armed is None or due < self._armed):
            self._timer_wake.set()

    def _transmit(self, peer: Peer, datagrams: Sequence[bytes], now: float) -> None:
        key = peer.public_key
        route, sends = self.paths.route(key, now)
        if sends:
            self._emit(sends)
        # While both are tried, the relay is the one that can be relied on.
        way = route.region or route.endpoint
        known = self._ways.get(key)
        if way != known:
            self._ways[key] = way
            if known is not None:
                self.stack.way_changed(peer.addresses)
        if route.endpoint is not None:
            self._outside.send_udp(route.endpoint, datagrams)
        if route.region:
            self._outside.send_relay(route.region, key, datagrams)

    def _emit(self, sends: Iterable[Send]) -> None:
        for send in sends:
            if send.endpoint is not None:
                self._outside.send_udp(send.endpoint, (send.datagram,))
            else:
                self._outside.send_relay(send.region, send.peer, (send.datagram,))

    def ping_paths(self, node_key: bytes) -> None:
        """Send disco pings to a peer; `Inside.answered` tells what came of them."""
        self._emit(self.paths.ping(node_key, self._clock.now()))

    async def ping(self, address: bytes) -> float:
        """Seconds until the peer's network answers a TSMP ping (§8.1). Without an end of its own: set a deadline.

        Raises `UnansweredError` when the node is closed, or too many wait.
        """
        self._tsmp_number += 1
        data = self._tsmp_number.to_bytes(8, "big")
        while len(self._tsmp) >= MAX_TSMP:
            _give_up(self._tsmp.pop(next(iter(self._tsmp))), f"{MAX_TSMP} later pings wait for their answers")
        answer = self._tsmp[data] = asyncio.get_running_loop().create_future()
        began = self._clock.now()
        source = next((own for own in self.addresses if own[:6] == address[:6]), self.addresses[0])
        self.send_packet(ip.tsmp_ping(source, address, data))
        try:
            await answer
        finally:
            self._tsmp.pop(data, None)
        return self._clock.now() - began

    # ---- time

    def next_timeout(self) -> float | None:
        """When something is due."""
        due = [self.device.next_timeout(), self.stack.next_timeout(), self.paths.next_timeout()]
        return min((when for when in due if when is not None), default=None)

    def handle_timeout(self) -> None:
        """Do what is due."""
        now = self._clock.now()
        for peer, datagrams in self.device.handle_timeout(now, self._clock.wall()):
            self._transmit(peer, datagrams, now)
        self._tcp_events(self.stack.handle_timeout(now))
        self._emit(self.paths.handle_timeout(now))
        while self._held:
            key = next(iter(self._held))
            if now - self._held[key][0] <= HELD_FOR:
                break
            del self._held[key]
        self.flush()

    async def keep_time(self) -> None:
        """Call `handle_timeout` whenever it is due, until cancelled."""
        while True:
            due = self.next_timeout()
            self._timer_wake.clear()
            self._armed = due
            if due is None:
                await self._timer_wake.wait()
                continue
            delay = due - self._clock.now()
            if delay > 0 and await self._woken_within(delay):
                continue
            self.handle_timeout()

    async def _woken_within(self, seconds: float) -> bool:
        """Whether something became due earlier than after `seconds`."""
        woken = asyncio.ensure_future(self._timer_wake.wait())
        slept = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
            return woken.done()
        finally:
            woken.cancel()
            slept.cancel()

    def reset_all(self) -> None:
        """Reset every connection and send that; whoever waits for one learns it."""
        for connection, stream in list(self._streams.items()):
            if not connection.ended:
                stream.abort()
        self._streams.clear()
        self.flush()

    def close(self) -> None:
        """`reset_all`, and nobody waits for an answer any more."""
        self.reset_all()
        for answer in self._tsmp.values():
            _give_up(answer, "the node is closed")


def _give_up(answer: asyncio.Future[None], reason: str) -> None:
    if not answer.done():
        answer.set_exception(UnansweredError(reason))
