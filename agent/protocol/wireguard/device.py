"""A WireGuard device without input or output (tailnet.md §7).

The owner feeds received datagrams in batches to `receive` and inner packets to `send`, sends what they return, and
calls `handle_timeout` when `next_timeout` is due. `now` is seconds on any monotonic scale, `wall_ns` nanoseconds since
1970. Where a peer's datagrams go is the owner's business: they are returned with the peer that they are for.

The handshake is imported with the first peer: what it computes with takes 7 MB, and a node may be alone for its life.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from agent.protocol import keys as curve
from agent.protocol.wireguard import messages
from agent.protocol.wireguard.admission import Admission, Verdict
from agent.protocol.wireguard.cookies import Checker
from agent.protocol.wireguard.keypairs import REJECT_AFTER_MESSAGES, Keypair, invalid_tag
from agent.protocol.wireguard.messages import TRANSPORT, TRANSPORT_HEADER, TRANSPORT_OVERHEAD
from agent.protocol.wireguard.peer import MAX_QUEUED, Peer
from agent.protocol.wireguard.timers import MAX_JITTER, MAX_RETRIES, REKEY_TIMEOUT

if TYPE_CHECKING:
    from agent.protocol.wireguard import noise

INITIATION_INTERVAL = 0.020
"""Seconds between two initiations that are accepted from one peer."""

MAX_RESPONSES = 8
"""Responses to one initiation that are tried without asking how many handshake messages arrive."""

_ADDRESS_SIZE = 16
_IPV6_HEADER_SIZE = 40
_ZERO4 = bytes(4)
_KEEPALIVE = (b"",)

Datagram = bytes | memoryview


@dataclass(slots=True)
class Counters:
    """What was dropped, by cause, and what a flood made us do."""

    malformed: int = 0
    """Received datagrams that are no WireGuard message, or of a wrong size."""
    unknown_index: int = 0
    """Messages for a session or handshake that is not there (any more)."""
    expired: int = 0
    """Transport messages under a keypair older than 180 s."""
    forged: int = 0
    """Transport messages that do not open."""
    replayed: int = 0
    """Transport messages received before, or too old for the window."""
    not_ipv6: int = 0
    bad_length: int = 0
    """Inner packets longer than what carried them."""
    foreign_source: int = 0
    """Inner packets from an address that is not the peer's."""
    bad_mac1: int = 0
    unknown_peer: int = 0
    """Initiations with the static key of nobody."""
    bad_handshake: int = 0
    """Initiations and responses that do not open."""
    replayed_initiation: int = 0
    """Initiations not newer than the last one accepted."""
    hasty_initiation: int = 0
    """Initiations within 20 ms of the last one accepted."""
    bad_cookie: int = 0
    cookies_issued: int = 0
    over_rate: int = 0
    """Handshake messages from a source that sends too many."""
    no_route: int = 0
    """Packets to send that are not IPv6 or whose destination is no peer's."""
    queue_overflow: int = 0
    """Packets to send that made room for newer ones while there was no keypair."""
    given_up: int = 0
    """Packets to send to a peer that did not answer for 90 s, or was removed."""


@dataclass(slots=True)
class Received:
    """What a batch of datagrams led to. A peer may occur more than once in each list."""

    packets: list[tuple[Peer, list[bytes]]] = field(default_factory=list)
    """Inner IPv6 packets with a source address that is the peer's. Their destination is not checked."""
    output: list[tuple[Peer, list[bytes]]] = field(default_factory=list)
    """Datagrams to send to peers."""
    replies: list[bytes] = field(default_factory=list)
    """Datagrams to send to the batch's source, whoever that is: cookies."""
    established: list[Peer] = field(default_factory=list)
    """Peers with a new session that both sides have."""


class Device:
    """Peers, their sessions, and the addresses that are theirs."""

    def __init__(self, private_key: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        self._private_key = private_key
        self._public_key = curve.public_key(private_key)
        self._random = random
        self._checker = Checker(self._public_key, random)
        self._admission = Admission(self._checker)
        self._peers: dict[bytes, Peer] = {}
        self._routes: dict[bytes, Peer] = {}
        self._keypairs: dict[int, Keypair] = {}
        self._initiations: dict[int, Peer] = {}
        self._deadlines: list[tuple[float, int, Peer]] = []
        self._pushed = 0
        self.counters = Counters()

    @property
    def public_key(self) -> bytes:
        """The raw 32 bytes."""
        return self._public_key

    @cached_property
    def _identity(self) -> noise.Identity:
        from agent.protocol.wireguard import noise

        return noise.Identity(self._private_key)

    def peer(self, public_key: bytes) -> Peer | None:
        """The peer with this key, if it was added."""
        return self._peers.get(public_key)

    # Configuration

    def add_peer(self, public_key: bytes, allowed_ips: Iterable[bytes], keepalive: float = 0) -> Peer:
        """Adds a peer, or changes addresses and keepalive (seconds, 0 for none) of a known one.

        An address (16 bytes) moves here from the peer that had it. A keepalive that is switched on is due at once:
        `next_timeout` says so. Raises `ValueError` for an address or a key that cannot be one.
        """
        from agent.protocol.wireguard import noise

        addresses = frozenset(allowed_ips)
        if wrong := [address for address in addresses if len(address) != _ADDRESS_SIZE]:
            raise ValueError(f"an allowed address has 16 bytes, not {len(wrong[0])}: {wrong[0].hex()}")
        if keepalive < 0:
            raise ValueError(f"a keepalive interval cannot be negative: {keepalive}")
        peer = self._peers.get(public_key)
        if peer is None:
            try:
                remote = noise.Remote(self._identity, public_key)
            except noise.HandshakeError as error:
                raise ValueError(str(error)) from error
            peer = self._peers[public_key] = Peer(remote, self._jitter)
        self._unroute(peer)
        for address in addresses:
            self._routes[address] = peer
        peer._addresses = addresses
        peer._timers.set_persistent(keepalive)
        self._schedule(peer)
        return peer

    def remove_peer(self, public_key: bytes) -> None:
        """Forgets a peer, its sessions, and what waits for it. Unknown keys are ignored."""
        peer = self._peers.pop(public_key, None)
        if peer is None:
            return
        self._unroute(peer)
        self._drop_keys(peer)
        self.counters.given_up += len(peer._queue)
        peer._queue.clear()
        peer._scheduled = inf

    def forget_keys(self, public_key: bytes) -> None:
        """Drops a peer's sessions, since its process is another one now. What waits makes a new handshake at once."""
        peer = self._peers.get(public_key)
        if peer is None:
            return
        self._drop_keys(peer)
        peer._timers.forget()
        peer._attempted_at = -inf
        if peer._queue:
            peer._timers.resend = -inf
        self._schedule(peer)

    def _unroute(self, peer: Peer) -> None:
        for address in peer._addresses:
            if self._routes.get(address) is peer:
                del self._routes[address]

    def _drop_keys(self, peer: Peer) -> None:
        self._forget(peer._keypairs.clear())
        self._drop_initiation(peer)

    def _drop_initiation(self, peer: Peer) -> None:
        if peer._initiated is not None:
            del self._initiations[peer._initiated_index]
            peer._initiated = None

    def _forget(self, keypairs: Iterable[Keypair]) -> None:
        for keypair in keypairs:
            del self._keypairs[keypair.index]

    def _free_index(self) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index not in self._keypairs and index not in self._initiations:
                return index

    def _jitter(self) -> float:
        return int.from_bytes(self._random(2), "little") * (MAX_JITTER / 65536)

    # Receiving

    def receive(self, datagrams: Sequence[Datagram], now: float, wall_ns: int, source: bytes = b"") -> Received:
        """Takes a batch from one source, in order. `source` is what a cookie proves: the sender's address as bytes."""
        received = Received()
        counters = self.counters
        keypairs = self._keypairs
        header = TRANSPORT_HEADER.unpack_from
        opened: dict[Keypair, list[bytes]] = {}
        keypair: Keypair | None = None
        index = -1
        for datagram in datagrams:
            if len(datagram) < TRANSPORT_OVERHEAD:
                counters.malformed += 1
                continue
            kind, receiver, counter = header(datagram)
            if kind != TRANSPORT:
                if opened:
                    self._take_opened(opened, now, wall_ns, received)
                    opened = {}
                keypair, index = None, -1
                self._take_handshake(kind, bytes(datagram), now, wall_ns, source, received)
                continue
            if receiver != index:
                index = receiver
                keypair = keypairs.get(receiver)
                if keypair is not None:
                    decrypt, accept = keypair.decrypt, keypair.window.accept
                    plaintexts = opened.get(keypair) or []
                    usable = now < keypair.expires
            if keypair is None:
                counters.unknown_index += 1
                continue
            if not usable:
                counters.expired += 1
                continue
            try:
                plaintext = decrypt(_ZERO4 + datagram[8:16], datagram[16:], None)
            except invalid_tag():
                counters.forged += 1
                continue
            if counter >= REJECT_AFTER_MESSAGES or not accept(counter):
                counters.replayed += 1
                continue
            if not plaintexts:
                opened[keypair] = plaintexts
            plaintexts.append(plaintext)
        if opened:
            self._take_opened(opened, now, wall_ns, received)
        return received

    def _take_opened(self, opened: dict[Keypair, list[bytes]], now: float, wall_ns: int, received: Received) -> None:
        for keypair, plaintexts in opened.items():
            peer = keypair.peer
            timers = peer._timers
            output: list[bytes] = []
            if keypair is peer._keypairs.next:
                self._forget(peer._keypairs.confirmed())
                self._established(peer, now, received)
                output += self._flush(peer, keypair, now, wall_ns)
            size = sum(map(len, plaintexts))
            peer.received_bytes += size + TRANSPORT_OVERHEAD * len(plaintexts)
            timers.authenticated_received(now)
            if size:
                timers.data_received(now)
                packets = self._unwrap(peer, plaintexts)
                if packets:
                    received.packets.append((peer, packets))
            if keypair.wants_successor_on_receive(now) and not peer._last_minute_used:
                peer._last_minute_used = True
                output += self._begin_handshake(peer, now, wall_ns)
            if output:
                received.output.append((peer, output))
            self._schedule(peer)

    def _unwrap(self, peer: Peer, plaintexts: list[bytes]) -> list[bytes]:
        """Inner packets without their padding, as far as they are the peer's to send (§7.7)."""
        counters = self.counters
        routes = self._routes
        packets = []
        known_source = b""
        for plaintext in plaintexts:
            size = len(plaintext)
            if size < _IPV6_HEADER_SIZE or plaintext[0] >> 4 != 6:
                if size:
                    counters.not_ipv6 += 1
                continue
            length = (plaintext[4] << 8 | plaintext[5]) + _IPV6_HEADER_SIZE
            if length > size:
                counters.bad_length += 1
                continue
            source = plaintext[8:24]
            if source != known_source:
                if routes.get(source) is not peer:
                    counters.foreign_source += 1
                    continue
                known_source = source
            packets.append(plaintext if length == size else plaintext[:length])
        return packets

    def _take_handshake(
        self, kind: int, message: bytes, now: float, wall_ns: int, source: bytes, received: Received
    ) -> None:
        if kind == messages.INITIATION and len(message) == messages.INITIATION_SIZE:
            if self._admitted(message, now, source, received):
                self._take_initiation(message, now, received)
        elif kind == messages.RESPONSE and len(message) == messages.RESPONSE_SIZE:
            peer = self._initiations.get(messages.RESPONSE_HEADER.unpack_from(message)[2])
            if peer is None:
                self.counters.unknown_index += 1
            elif self._admitted(message, now, source, received, peer):
                self._take_response(peer, message, now, wall_ns, received)
        elif kind == messages.COOKIE_REPLY and len(message) == messages.COOKIE_REPLY_SIZE:
            self._take_cookie(message, now)
        else:
            self.counters.malformed += 1

    def _admitted(
        self, message: bytes, now: float, source: bytes, received: Received, awaited: Peer | None = None
    ) -> bool:
        if not self._checker.mac1_is_valid(message):
            self.counters.bad_mac1 += 1
            return False
        if awaited is not None and awaited._responses < MAX_RESPONSES:
            # Nobody guesses the index, so that a thousand peers may answer at once. Who reads along might flood.
            awaited._responses += 1
            return True
        verdict = self._admission.judge(message, source, now)
        if verdict is Verdict.ASK_FOR_COOKIE:
            received.replies.append(self._checker.reply(message, source, now))
            self.counters.cookies_issued += 1
        elif verdict is Verdict.DROP:
            self.counters.over_rate += 1
        return verdict is Verdict.TAKE

    def _take_initiation(self, message: bytes, now: float, received: Received) -> None:
        from agent.protocol.wireguard import noise

        try:
            opened = noise.open_initiation(self._identity, message)
            peer = self._peers.get(opened.static_public)
            if peer is None:
                self.counters.unknown_peer += 1
                return
            stamp, initiation = opened.authenticate(peer._remote)
            if stamp <= peer._accepted_stamp:
                self.counters.replayed_initiation += 1
                return
            if now - peer._accepted_at <= INITIATION_INTERVAL:
                self.counters.hasty_initiation += 1
                return
            index = self._free_index()
            body, keys = noise.create_response(initiation, index, self._random(messages.KEY_SIZE))
        except noise.HandshakeError:
            self.counters.bad_handshake += 1
            return
        peer._accepted_stamp, peer._accepted_at = stamp, now
        keypair = self._keypairs[index] = Keypair(peer, keys, index, initiator=False, now=now)
        self._forget(peer._keypairs.responded(keypair))
        peer._attempted_at = now
        timers = peer._timers
        timers.authenticated_received(now)
        timers.keys_derived(now)
        timers.authenticated_sent(now)
        received.output.append((peer, [peer._stamper.stamp(body, now)]))
        self._schedule(peer)

    def _take_response(self, peer: Peer, message: bytes, now: float, wall_ns: int, received: Received) -> None:
        from agent.protocol.wireguard import noise

        assert peer._initiated is not None
        try:
            keys = noise.open_response(peer._initiated, message)
        except noise.HandshakeError:
            self.counters.bad_handshake += 1
            return
        self._drop_initiation(peer)
        index = peer._initiated_index
        keypair = self._keypairs[index] = Keypair(peer, keys, index, initiator=True, now=now)
        self._forget(peer._keypairs.initiated(keypair))
        peer._timers.authenticated_received(now)
        peer._timers.keys_derived(now)
        self._established(peer, now, received)
        # The responder may not send before it has received under the new keys.
        output = self._flush(peer, keypair, now, wall_ns) or self._seal(peer, keypair, _KEEPALIVE, now, wall_ns)
        received.output.append((peer, output))
        self._schedule(peer)

    def _take_cookie(self, message: bytes, now: float) -> None:
        index = messages.COOKIE_HEADER.unpack_from(message)[1]
        keypair = self._keypairs.get(index)
        peer = self._initiations.get(index) if keypair is None else keypair.peer
        if peer is None:
            self.counters.unknown_index += 1
        elif not peer._stamper.take_cookie(message, now):
            self.counters.bad_cookie += 1

    def _established(self, peer: Peer, now: float, received: Received) -> None:
        peer._timers.handshake_complete()
        peer._last_minute_used = False
        peer.last_handshake = now
        received.established.append(peer)

    # Sending

    def send(self, packets: Sequence[bytes], now: float, wall_ns: int) -> list[tuple[Peer, list[bytes]]]:
        """Routes inner IPv6 packets by their destination. Without a keypair they wait for the handshake."""
        batches: dict[Peer, list[bytes]] = {}
        batch: list[bytes] | None = None
        last_destination = b""
        for packet in packets:
            destination = packet[24:40]
            if destination != last_destination:
                last_destination = destination
                peer = self._routes.get(destination)
                batch = None if peer is None else batches.setdefault(peer, [])
            if batch is None or packet[0] >> 4 != 6:
                self.counters.no_route += 1
                continue
            batch.append(packet)
        output = []
        for peer, batch in batches.items():
            keypair = peer._keypairs.current
            if keypair is not None and keypair.may_send(now):
                datagrams = self._seal(peer, keypair, batch, now, wall_ns)
            else:
                self._enqueue(peer, batch)
                datagrams = self._begin_handshake(peer, now, wall_ns)
            if datagrams:
                output.append((peer, datagrams))
            self._schedule(peer)
        return output

    def _enqueue(self, peer: Peer, batch: list[bytes]) -> None:
        queue = peer._queue
        queue.extend(batch)
        while len(queue) > MAX_QUEUED:
            queue.popleft()
            self.counters.queue_overflow += 1

    def _flush(self, peer: Peer, keypair: Keypair, now: float, wall_ns: int) -> list[bytes]:
        if not peer._queue:
            return []
        waiting = list(peer._queue)
        peer._queue.clear()
        return self._seal(peer, keypair, waiting, now, wall_ns)

    def _seal(self, peer: Peer, keypair: Keypair, packets: Sequence[bytes], now: float, wall_ns: int) -> list[bytes]:
        datagrams = keypair.seal(packets)
        peer.sent_bytes += sum(map(len, datagrams))
        peer._timers.authenticated_sent(now)
        if packets is not _KEEPALIVE:
            peer._timers.data_sent(now)
        if keypair.wants_successor_on_send(now):
            datagrams += self._begin_handshake(peer, now, wall_ns)
        return datagrams

    def _begin_handshake(self, peer: Peer, now: float, wall_ns: int, *, again: bool = False) -> list[bytes]:
        """An initiation, unless a handshake message went out less than 5 s ago: then one is sent in time."""
        from agent.protocol.wireguard import noise

        timers = peer._timers
        if not again:
            timers.retries = 0
        earliest = peer._attempted_at + REKEY_TIMEOUT
        if now < earliest:
            if timers.resend == inf:
                timers.resend = earliest + self._jitter()
            return []
        self._drop_initiation(peer)
        index = self._free_index()
        # A clock that was set back must not make the peer take this for a replay.
        peer._stamp_ns = max(wall_ns, noise.next_step(peer._stamp_ns))
        stamp = noise.timestamp(peer._stamp_ns)
        ephemeral = self._random(messages.KEY_SIZE)
        body, peer._initiated = noise.create_initiation(self._identity, peer._remote, index, ephemeral, stamp)
        peer._initiated_index = index
        peer._responses = 0
        self._initiations[index] = peer
        peer._attempted_at = now
        timers.authenticated_sent(now)
        timers.initiation_sent(now)
        return [peer._stamper.stamp(body, now)]

    # Time

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`: a time that may have passed, -inf for at once, None for never."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2]._scheduled != deadlines[0][0]:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def handle_timeout(self, now: float, wall_ns: int) -> list[tuple[Peer, list[bytes]]]:
        """Does what is due, and returns the datagrams to send."""
        due = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            deadline, _, peer = heappop(deadlines)
            if peer._scheduled == deadline:
                peer._scheduled = inf
                due.append(peer)
        output = []
        for peer in due:
            datagrams = self._expire(peer, now, wall_ns)
            if datagrams:
                output.append((peer, datagrams))
            self._schedule(peer)
        return output

    def _expire(self, peer: Peer, now: float, wall_ns: int) -> list[bytes]:
        timers = peer._timers
        output: list[bytes] = []
        if timers.erase <= now:
            timers.erase = inf
            self._forget(peer._keypairs.clear())
        if timers.resend <= now:
            timers.resend = inf
            if timers.retries < MAX_RETRIES:
                timers.retries += 1
                output += self._begin_handshake(peer, now, wall_ns, again=True)
            else:
                self._drop_initiation(peer)
                self.counters.given_up += len(peer._queue)
                peer._queue.clear()
        if timers.dead_peer <= now:
            timers.dead_peer = inf
            output += self._begin_handshake(peer, now, wall_ns)
        if timers.keepalive <= now or timers.persistent <= now:
            timers.keepalive = inf
            if timers.persistent <= now:
                timers.persistent = inf
            keypair = peer._keypairs.current
            if keypair is not None and keypair.may_send(now):
                output += self._seal(peer, keypair, _KEEPALIVE, now, wall_ns)
            else:
                output += self._begin_handshake(peer, now, wall_ns)
        return output

    def _schedule(self, peer: Peer) -> None:
        """Remembers when to look at a peer. A deadline that moves away costs nothing: it is seen when looked at."""
        deadline = peer._timers.deadline()
        if deadline >= peer._scheduled:
            return
        peer._scheduled = deadline
        self._pushed += 1
        heappush(self._deadlines, (deadline, self._pushed, peer))
        if len(self._deadlines) > 4 * len(self._peers) + 64:
            self._deadlines[:] = [entry for entry in self._deadlines if entry[2]._scheduled == entry[0]]
            heapify(self._deadlines)
