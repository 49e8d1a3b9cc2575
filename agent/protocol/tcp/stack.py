"""TCP for the inner path, without input or output (tailnet.md §8.3, §8.4): packets and time in, packets and events out.

The owner feeds IPv6 packets to `receive`, acts on the events, sends what `packets_to_send` gives until it is empty,
and calls `handle_timeout` when `next_timeout` is due. It sends also after it has called anything of a `Connection`.
Times are seconds on one monotonic scale.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Collection, Iterable

from agent.protocol.tcp.connection import Connection
from agent.protocol.tcp.limits import Event, Incoming, Limits, NoFreePortError, StackCounters, State
from agent.protocol.tcp.segment import (
    ACK,
    FIN,
    IP,
    MASK,
    MIN_PACKET,
    RST,
    SYN,
    TCP,
    ack_options,
    build,
    ones_sum,
    parse_options,
    reset_for,
    reverse,
)
from agent.protocol.tcp.shared import Shared, TimeWait

MTU = 1280
_HEADERS = 60
_PROTOCOL = 6
_FIRST_PORT = 16_384
_LAST_PORT = 65_535
_QUANTUM = 16
"""Packets of one connection in a row while others wait."""
_HALF = 0x80000000
_MANY_TIMERS = 256


class TcpStack:
    """All connections of one set of addresses."""

    __slots__ = ("_addresses", "_random", "_serial", "_shared", "_timers")

    def __init__(
        self,
        addresses: Iterable[bytes],
        random: Callable[[int], bytes] = os.urandom,
        mtu: int = MTU,
        limits: Limits | None = None,
    ) -> None:
        """`addresses`: 16 bytes each, those whose packets are taken in. `mtu`: bytes of the largest packet."""
        self._addresses = frozenset(addresses)
        self._random = random
        self._shared = Shared(limits or Limits(), mtu - _HEADERS, random(32))
        self._timers: list[tuple[float, int, Connection]] = []
        self._serial = 0

    @property
    def counters(self) -> StackCounters:
        """What became of packets that no connection took."""
        return self._shared.counters

    @property
    def connections(self) -> list[Connection]:
        """Every connection that has not ended."""
        return list(self._shared.table.values())

    @property
    def pending(self) -> int:
        """Incoming connections that are not established."""
        return self._shared.pending

    @property
    def limits(self) -> Limits:
        """The bounds that hold here."""
        return self._shared.limits

    def connect(self, source: bytes, destination: bytes, port: int, now: float) -> Connection:
        """Begin a connection; `Connected` or `Closed` follows. NoFreePortError."""
        shared = self._shared
        count = _LAST_PORT - _FIRST_PORT + 1
        first = int.from_bytes(self._random(4), "big")
        for step in range(count):
            local = _FIRST_PORT + (first + step) % count
            flow = source + destination + local.to_bytes(2, "big") + port.to_bytes(2, "big")
            key = reverse(flow)
            if key not in shared.table and key not in shared.time_waits:
                break
        else:
            raise NoFreePortError(f"all {count} local ports of this pair of addresses and port {port} are in use")
        connection = Connection(shared, key, flow, State.SYN_SENT, now)
        shared.enter(connection)
        connection.begin()
        return connection

    def receive(self, packets: Iterable[bytes | memoryview], now: float) -> list[Event]:
        """Take in a batch of IPv6 packets with next header 6. What is wrong is dropped and counted."""
        shared = self._shared
        table, counters = shared.table, shared.counters
        touched: list[Connection] = []
        for packet in packets:
            size = len(packet)
            if size < MIN_PACKET:
                counters.malformed += 1
                continue
            word, length, protocol, hops = IP.unpack_from(packet)
            if word >> 28 != 6 or length != size - 40 or protocol != _PROTOCOL:
                counters.malformed += 1
                continue
            # What stands before the addresses is no part of it; to take that away is cheaper than to cut the packet.
            if (ones_sum(packet) - word - (_PROTOCOL << 8 | hops) + _PROTOCOL) % 65535:
                counters.bad_checksum += 1
                continue
            seq, ack, offset_flags, window, _, _ = TCP.unpack_from(packet, 44)
            data_at = 40 + (offset_flags >> 12) * 4
            if data_at < MIN_PACKET or data_at > size:
                counters.malformed += 1
                continue
            key = bytes(packet[8:44])
            connection = table.get(key)
            if connection is None:
                self._stray(key, seq, ack, offset_flags, window, packet, data_at, now)
                continue
            if not connection.touched:
                connection.touched = True
                touched.append(connection)
            connection.segment(seq, ack, offset_flags, window, packet, data_at, now)
        for connection in touched:
            connection.finish(now)
            self._ready(connection)
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events = self._shared.events
        self._shared.events = []
        return events

    def _ready(self, connection: Connection) -> None:
        if not connection.queued and not connection.ended:
            connection.queued = True
            self._shared.ready.append(connection)

    def _stray(
        self,
        key: bytes,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        packet: bytes | memoryview,
        data_at: int,
        now: float,
    ) -> None:
        """A segment without a connection."""
        shared = self._shared
        if key[16:32] not in self._addresses:
            shared.counters.foreign += 1
            return
        wait = shared.time_waits.get(key)
        if wait is not None:
            if wait.expires <= now:
                del shared.time_waits[key]
            elif not self._reopens(wait, seq, flags, packet, data_at):
                self._answer_late(key, wait, flags, len(packet) > data_at, now)
                return
            else:
                del shared.time_waits[key]
        if flags & RST:
            return
        if flags & SYN and not flags & (ACK | FIN):
            if not shared.has_room(key):
                shared.counters.backlog_full += 1
                return
            connection = Connection(shared, key, reverse(key), State.PENDING, now)
            shared.enter(connection)
            connection.open(seq, window, bytes(packet[60:data_at]), now)
            self._arm(connection, now)
            shared.events.append(Incoming(connection))
            return
        shared.counters.resets_sent += 1
        length = len(packet) - data_at + (flags & SYN != 0) + (flags & FIN)
        shared.send_control(reset_for(reverse(key), seq, ack, flags, length))

    @staticmethod
    def _reopens(wait: TimeWait, seq: int, flags: int, packet: bytes | memoryview, data_at: int) -> bool:
        """Whether a SYN is certainly newer than the connection in TIME_WAIT (RFC 6191)."""
        if not flags & SYN or flags & (ACK | RST):
            return False
        stamp = parse_options(packet[60:data_at]).timestamp
        if stamp is not None and wait.stamp_recent is not None and stamp != wait.stamp_recent:
            return (stamp - wait.stamp_recent) & MASK < _HALF
        return 0 < (seq - wait.ack) & MASK < _HALF

    def _answer_late(self, key: bytes, wait: TimeWait, flags: int, data: bool, now: float) -> None:
        """Our last acknowledgement was lost: give it again. RST does not end TIME_WAIT (RFC 1337)."""
        shared = self._shared
        if flags & RST or not (data or flags & (FIN | SYN)):
            return
        if flags & FIN:
            wait.expires = now + shared.limits.time_wait
            shared.wait(key, wait)
        elif not shared.may_challenge(now):
            return
        options = b""
        if wait.stamp_recent is not None:
            options = ack_options((int(now * 1000) + wait.stamp_offset) & MASK, wait.stamp_recent, [])
        shared.send_control(build(wait.flow, wait.seq, wait.ack, ACK, wait.window, options))

    def packets_to_send(self, now: float, limit: int = 64) -> list[bytes]:
        """Up to about `limit` complete packets; empty if there are none now."""
        out: list[bytes] = []
        control, ready = self._shared.control, self._shared.ready
        while control and len(out) < limit:
            out.append(control.popleft())
        while ready and len(out) < limit:
            connection = ready.popleft()
            connection.queued = False
            room = limit - len(out)
            more = connection.emit(out, min(room, _QUANTUM) if ready else room, now)
            if more:
                self._ready(connection)
            self._arm(connection, now)
        return out

    def way_changed(self, remotes: Collection[bytes]) -> None:
        """Packets to these addresses go another way from now on."""
        for connection in self._shared.table.values():
            if connection.remote_address in remotes:
                connection.way_changed()

    def _arm(self, connection: Connection, now: float) -> None:
        """See that a timer runs no later than the connection needs; one that runs earlier does no harm.

        The timers of a connection are a stack: each is earlier than the one below, so that they end in that order.
        """
        due = connection.deadline(now)
        if due is None or (connection.timers and connection.timers[-1] <= due):
            return
        connection.timers.append(due)
        self._serial += 1
        heapq.heappush(self._timers, (due, self._serial, connection))
        if len(self._timers) > _MANY_TIMERS + 4 * len(self._shared.table):
            self._timers = [each for each in self._timers if not each[2].ended]
            heapq.heapify(self._timers)

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due; None if nothing waits."""
        timers = self._timers
        while timers and timers[0][2].ended:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def handle_timeout(self, now: float) -> list[Event]:
        """Do what is due."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, _, connection = heapq.heappop(timers)
            if connection.ended:
                continue
            connection.timers.pop()
            due = connection.deadline(now)
            if due is not None and due <= now:
                connection.handle_timeout(now)
            # Also when nothing was due any more: it may be the pace that lets it go on now.
            self._ready(connection)
            if not connection.ended:
                self._arm_later(connection, now)
        waits = self._shared.time_waits
        while waits:
            key = next(iter(waits))
            if waits[key].expires > now:
                break
            del waits[key]
        return self._take_events()

    def _arm_later(self, connection: Connection, now: float) -> None:
        """Like `_arm`; what is still due is on its way out and gets its timer when it has been sent."""
        due = connection.deadline(now)
        if due is not None and due > now:
            self._arm(connection, now)
