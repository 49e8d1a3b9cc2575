"""Which way datagrams go to a peer: through the relay, or directly over UDP once a path is proven (tailnet.md §6).

Without input or output: `Paths` is told what arrived and what is about to be sent, and gives back what to send. Times
are seconds on a monotonic scale.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from agent.api.tailnet import CODER_PREFIX
from agent.protocol import disco, keys
from agent.protocol.disco import CallMeMaybe, DiscoError, Ping, Pong
from agent.protocol.ip import Endpoint, unmapped

TRUST: Final = 6.5
"""Seconds after a pong for which a path is used without the relay beside it."""
HEARTBEAT: Final = 3.0
TICK: Final = 0.125
"""Seconds that are not told apart, so that a thousand active peers are looked at together; a power of 2."""
ACTIVE: Final = 45.0
"""Seconds after the last datagram for which the paths to a peer are kept up."""
PING_INTERVAL: Final = 5.0
"""Seconds between two pings of a round to one endpoint; after as many a ping without a pong is forgotten."""
FULL_ROUND: Final = 60.0
GOOD_LATENCY: Final = 0.005
LEARNED_LIFETIME: Final = 45.0
"""Seconds that an endpoint lives which is known only because a ping came from it."""
MAX_ENDPOINTS: Final = 64
"""Candidates of one peer, and endpoints bound to it; of more than that the oldest go."""
MAX_OUTSTANDING: Final = 4096
CALL_BURST, CALL_RATE = 5.0, 1.0
"""Call-me-maybes that are heard from one peer at once, and a second: each makes this node send to wherever it says."""


class Send(NamedTuple):
    """A datagram to send: over UDP to `endpoint`, or where that is None through relay `region` to `peer`."""

    endpoint: Endpoint | None
    region: int
    peer: bytes
    datagram: bytes


class Route(NamedTuple):
    """Where a peer's datagrams go now: both while a path is not trusted; `region` 0 means not through a relay."""

    endpoint: Endpoint | None
    region: int


class Answered(NamedTuple):
    """A pong came: `peer` is there. `endpoint` is None where it came through relay `region`."""

    peer: bytes
    latency: float
    endpoint: Endpoint | None
    region: int


class Outcome(NamedTuple):
    """What a disco packet led to."""

    send: list[Send]
    answered: Answered | None = None


@dataclass(slots=True)
class Counters:
    """Disco packets that came to nothing."""

    unknown_sender: int = 0
    bad_box: int = 0
    blocked: int = 0
    ambiguous: int = 0
    hasty_call: int = 0
    """Call-me-maybes of a peer that sends too many of them."""


@dataclass(slots=True)
class _Candidate:
    """An endpoint at which a peer may be reached."""

    configured: bool = False
    called: bool = False
    """From the peer's last call-me-maybe."""
    learned_until: float = 0.0
    pinged_at: float = float("-inf")
    last_txid: bytes = b""


@dataclass(slots=True)
class _Outstanding:
    peer: bytes
    endpoint: Endpoint | None
    region: int
    sent_at: float


class _Peer:
    __slots__ = (
        "best",
        "best_latency",
        "bound",
        "called_at",
        "calls",
        "candidates",
        "disco_key",
        "full_round_at",
        "heartbeat_at",
        "home",
        "key",
        "last_send",
        "latency",
        "node_key",
        "trusted_until",
    )

    def __init__(self, node_key: bytes, disco_key: bytes, box: bytes, home: int) -> None:
        self.node_key = node_key
        self.disco_key = disco_key
        self.key = box
        self.home = home
        self.candidates: dict[Endpoint, _Candidate] = {}
        self.bound: dict[Endpoint, None] = {}
        self.best: Endpoint | None = None
        self.best_latency = 0.0
        self.trusted_until = float("-inf")
        self.latency: float | None = None
        self.last_send = float("-inf")
        self.heartbeat_at = float("inf")
        self.full_round_at = float("-inf")
        self.calls = CALL_BURST
        self.called_at = float("-inf")

    def may_call(self, now: float) -> bool:
        """Count one call-me-maybe."""
        self.calls = min(CALL_BURST, self.calls + (now - self.called_at) * CALL_RATE)
        self.called_at = now
        if self.calls < 1:
            return False
        self.calls -= 1
        return True


class Paths:
    """The paths to all peers of one node. `direct` may be switched at any time."""

    def __init__(
        self,
        disco_private: bytes,
        node_public: bytes,
        *,
        direct: bool = True,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._private = disco_private
        self.public = keys.public_key(disco_private)
        """This node's disco key."""
        self._node_public = node_public
        self._direct = direct
        self._random = random
        self._peers: dict[bytes, _Peer] = {}
        self._by_disco: dict[bytes, set[bytes]] = {}
        self._bound: dict[Endpoint, bytes] = {}
        self._outstanding: dict[bytes, _Outstanding] = {}
        self._active: dict[bytes, _Peer] = {}
        self._due = float("inf")
        """When the first of the active peers is to be looked at, or earlier."""
        self._own: tuple[Endpoint, ...] = ()
        self.counters = Counters()

    # ---- what is known

    @property
    def direct(self) -> bool:
        """Whether UDP may be used."""
        return self._direct

    def set_direct(self, direct: bool) -> None:
        """Allow or forbid direct paths; forbidding forgets those there are, streams go on through the relay."""
        self._direct = direct
        if not direct:
            for peer in self._peers.values():
                self._forget_paths(peer)

    def set_own_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Where this node can be reached; goes into call-me-maybe."""
        self._own = tuple(endpoints)

    def set_peer(self, node_key: bytes, disco_key: bytes, home: int, endpoints: Iterable[Endpoint]) -> None:
        """Make a peer known, or replace what is known of it. A new disco key forgets its paths (§6.4).

        Raises `keys.KeyFormatError` for a disco key with which no box can be sealed.
        """
        peer = self._peers.get(node_key)
        if peer is None or peer.disco_key != disco_key:
            box = keys.box_key(self._private, disco_key)
            self.remove_peer(node_key)
            peer = self._peers[node_key] = _Peer(node_key, disco_key, box, home)
            self._by_disco.setdefault(disco_key, set()).add(node_key)
        peer.home = home
        for candidate in peer.candidates.values():
            candidate.configured = False
        for endpoint in list(endpoints)[:MAX_ENDPOINTS]:
            peer.candidates.setdefault(endpoint, _Candidate()).configured = True
        self._prune(peer, float("-inf"))

    def remove_peer(self, node_key: bytes) -> None:
        """Forget a peer; nothing that comes from it is heard any more."""
        peer = self._peers.pop(node_key, None)
        if peer is None:
            return
        self._forget_paths(peer)
        self._active.pop(node_key, None)
        same = self._by_disco[peer.disco_key]
        same.discard(node_key)
        if not same:
            del self._by_disco[peer.disco_key]

    def knows(self, node_key: bytes, disco_key: bytes) -> bool | None:
        """Whether the peer is known with that disco key; None for an unknown peer."""
        peer = self._peers.get(node_key)
        return None if peer is None else peer.disco_key == disco_key

    def sender_of(self, endpoint: Endpoint) -> bytes | None:
        """The peer whose WireGuard datagrams are accepted from this UDP endpoint, if any (§6.4)."""
        return self._bound.get(endpoint)

    def home_of(self, node_key: bytes) -> int:
        """The peer's home region; 0 for an unknown peer."""
        peer = self._peers.get(node_key)
        return peer.home if peer is not None else 0

    def latency(self, node_key: bytes) -> float | None:
        """The last round trip to a peer in seconds."""
        peer = self._peers.get(node_key)
        return peer.latency if peer is not None else None

    def active(self, now: float) -> list[bytes]:
        """Peers to which something was sent within the last 45 s."""
        return [key for key, peer in self._active.items() if now - peer.last_send <= ACTIVE]

    def current(self, node_key: bytes, now: float) -> Route:
        """Where a peer's datagrams would go, without sending any."""
        peer = self._peers.get(node_key)
        if peer is None:
            return Route(None, 0)
        if peer.best is None:
            return Route(None, peer.home)
        return Route(peer.best, 0 if now < peer.trusted_until else peer.home)

    # ---- sending

    def route(self, node_key: bytes, now: float) -> tuple[Route, list[Send]]:
        """Something is about to be sent to a peer: where to, and the disco packets that keep or find its paths."""
        peer = self._peers.get(node_key)
        if peer is None:
            return Route(None, 0), []
        if now - peer.last_send > ACTIVE or peer.heartbeat_at == float("inf"):
            peer.heartbeat_at = now + HEARTBEAT
            self._active[node_key] = peer
            self._due = min(self._due, peer.heartbeat_at)
        peer.last_send = now
        if now < peer.trusted_until:
            return Route(peer.best, 0), []
        out = self._full_round(peer, now) if self._direct else []
        return Route(peer.best, peer.home), out

    def ping(self, node_key: bytes, now: float) -> list[Send]:
        """Ping a peer on behalf of somebody who waits for `Answered`: through the relay and at every endpoint, or only
        on the trusted path."""
        peer = self._peers.get(node_key)
        if peer is None:
            return []
        if peer.best is not None and now < peer.trusted_until:
            return [self._ping(peer, peer.best, 0, now)]
        out = [self._ping(peer, None, peer.home, now)] if peer.home else []
        if self._direct:
            out += self._full_round(peer, now, force=True)
        return out

    def link_changed(self) -> None:
        """The machine's network is another one: no path is trusted until it is proven again."""
        for peer in self._peers.values():
            peer.trusted_until = float("-inf")

    # ---- time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is due at the latest; None while no peer is active."""
        return math.ceil(self._due / TICK) * TICK if self._active else None

    def handle_timeout(self, now: float) -> list[Send]:
        """Heartbeats of active peers, and forgetting of what is old."""
        out: list[Send] = []
        for node_key, peer in list(self._active.items()):
            if peer.heartbeat_at > now:
                continue
            if now - peer.last_send > ACTIVE:
                peer.heartbeat_at = float("inf")
                del self._active[node_key]
                continue
            peer.heartbeat_at = now + HEARTBEAT
            self._prune(peer, now)
            if self._direct:
                out += self._heartbeat(peer, now)
        self._due = min((peer.heartbeat_at for peer in self._active.values()), default=float("inf"))
        while self._outstanding:
            txid = next(iter(self._outstanding))
            if now - self._outstanding[txid].sent_at < PING_INTERVAL:
                break
            del self._outstanding[txid]
        return out

    def _heartbeat(self, peer: _Peer, now: float) -> list[Send]:
        slow = peer.best_latency > GOOD_LATENCY and now - peer.full_round_at >= FULL_ROUND
        search = peer.best is None or now >= peer.trusted_until or slow
        out = self._full_round(peer, now) if search else []
        if peer.best is not None and not any(send.endpoint == peer.best for send in out):
            out.append(self._ping(peer, peer.best, 0, now))
        return out

    # ---- receiving

    def receive(self, datagram: bytes, now: float, endpoint: Endpoint | None, region: int, relayed: bytes) -> Outcome:
        """A disco packet arrived from UDP `endpoint`, or where that is None through `region` from node `relayed`."""
        claimed = self._by_disco.get(disco.sender(datagram))
        if claimed is None:
            self.counters.unknown_sender += 1
            return Outcome([])
        if endpoint is not None and not self._direct:
            self.counters.blocked += 1
            return Outcome([])
        some = self._peers[next(iter(claimed))]
        try:
            message = disco.open_box(datagram, some.key)
        except DiscoError:
            self.counters.bad_box += 1
            return Outcome([])
        match message:
            case Ping():
                return Outcome(self._receive_ping(message, claimed, now, endpoint, region, relayed))
            case Pong():
                return self._receive_pong(message, claimed, now, endpoint, region)
            case CallMeMaybe() if endpoint is None and relayed in claimed:
                return Outcome(self._receive_call(message, self._peers[relayed], now))
        return Outcome([])

    def _receive_ping(
        self, ping: Ping, claimed: set[bytes], now: float, endpoint: Endpoint | None, region: int, relayed: bytes
    ) -> list[Send]:
        if endpoint is None and relayed in claimed:
            node = relayed
        elif ping.node_key in claimed:
            node = ping.node_key
        elif len(claimed) == 1:
            node = next(iter(claimed))
        else:
            self.counters.ambiguous += 1
            return []
        peer = self._peers[node]
        if endpoint is None:
            pong = Pong(ping.txid, disco.derp_source(region))
            return [Send(None, region, relayed, self._seal(pong, peer))]
        self._bind(peer, endpoint)
        candidate = peer.candidates.setdefault(endpoint, _Candidate())
        candidate.learned_until = now + LEARNED_LIFETIME
        if candidate.last_txid == ping.txid:
            return []
        candidate.last_txid = ping.txid
        self._prune(peer, now)
        return [Send(endpoint, 0, node, self._seal(Pong(ping.txid, endpoint), peer))]

    def _receive_pong(
        self, pong: Pong, claimed: set[bytes], now: float, endpoint: Endpoint | None, region: int
    ) -> Outcome:
        sent = self._outstanding.get(pong.txid)
        if sent is None or sent.peer not in claimed:
            return Outcome([])
        del self._outstanding[pong.txid]
        peer = self._peers[sent.peer]
        peer.latency = latency = max(now - sent.sent_at, 0.0)
        if endpoint is not None:
            self._bind(peer, endpoint)
            if sent.endpoint is not None:
                self._consider(peer, sent.endpoint, latency, now)
        return Outcome([], Answered(sent.peer, latency, endpoint, region))

    def _consider(self, peer: _Peer, endpoint: Endpoint, latency: float, now: float) -> None:
        if peer.best is None or endpoint == peer.best or now >= peer.trusted_until:
            pass
        elif not better(endpoint, latency, peer.best, peer.best_latency):
            return
        peer.best, peer.best_latency, peer.trusted_until = endpoint, latency, now + TRUST

    def _receive_call(self, call: CallMeMaybe, peer: _Peer, now: float) -> list[Send]:
        if not self._direct:
            self.counters.blocked += 1
            return []
        if not peer.may_call(now):
            self.counters.hasty_call += 1
            return []
        for candidate in peer.candidates.values():
            candidate.called = False
        for endpoint in call.endpoints[:MAX_ENDPOINTS]:
            if _usable(endpoint):
                peer.candidates.setdefault(endpoint, _Candidate()).called = True
        self._prune(peer, now)
        return [self._ping(peer, endpoint, 0, now) for endpoint in list(peer.candidates)]

    # ---- common

    def _full_round(self, peer: _Peer, now: float, *, force: bool = False) -> list[Send]:
        """Ping every endpoint that was not pinged lately, and ask the peer to do the same."""
        due = [
            endpoint
            for endpoint, candidate in peer.candidates.items()
            if force or now - candidate.pinged_at >= PING_INTERVAL
        ]
        if peer.candidates and not due:
            return []
        if not peer.candidates and now - peer.full_round_at < PING_INTERVAL and not force:
            return []
        peer.full_round_at = now
        out = [self._ping(peer, endpoint, 0, now) for endpoint in due]
        # Also with no endpoint of the peer to ping: it may reach this node, and its ping then shows the way back.
        if peer.home and self._own:
            out.append(Send(None, peer.home, peer.node_key, self._seal(CallMeMaybe(self._own), peer)))
        return out

    def _ping(self, peer: _Peer, endpoint: Endpoint | None, region: int, now: float) -> Send:
        txid = self._random(disco.TXID_SIZE)
        while len(self._outstanding) >= MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[txid] = _Outstanding(peer.node_key, endpoint, region, now)
        if endpoint is not None and (candidate := peer.candidates.get(endpoint)) is not None:
            candidate.pinged_at = now
        return Send(endpoint, region, peer.node_key, self._seal(Ping(txid, self._node_public), peer))

    def _seal(self, message: disco.Sendable, peer: _Peer) -> bytes:
        return disco.seal(message, self.public, peer.key, self._random(disco.NONCE_SIZE), padded=True)

    def _bind(self, peer: _Peer, endpoint: Endpoint) -> None:
        owner = self._bound.get(endpoint)
        if owner == peer.node_key:
            return
        if owner is not None:
            self._peers[owner].bound.pop(endpoint, None)
        self._bound[endpoint] = peer.node_key
        peer.bound[endpoint] = None
        if len(peer.bound) > MAX_ENDPOINTS:
            oldest = next(end for end in peer.bound if end != peer.best)
            del peer.bound[oldest]
            del self._bound[oldest]

    def _prune(self, peer: _Peer, now: float) -> None:
        for endpoint, candidate in list(peer.candidates.items()):
            if not candidate.configured and not candidate.called and candidate.learned_until <= now:
                self._drop_candidate(peer, endpoint)
        while len(peer.candidates) > 2 * MAX_ENDPOINTS:
            self._drop_candidate(peer, next(end for end in peer.candidates if end != peer.best))

    def _drop_candidate(self, peer: _Peer, endpoint: Endpoint) -> None:
        del peer.candidates[endpoint]
        if peer.best == endpoint:
            peer.best = None
            peer.trusted_until = float("-inf")

    def _forget_paths(self, peer: _Peer) -> None:
        for endpoint in peer.bound:
            del self._bound[endpoint]
        peer.bound.clear()
        peer.best = None
        peer.trusted_until = float("-inf")
        for txid, ping in list(self._outstanding.items()):
            if ping.peer == peer.node_key and ping.endpoint is not None:
                del self._outstanding[txid]


def better(new: Endpoint, new_latency: float, old: Endpoint, old_latency: float) -> bool:
    """Whether a proven path should replace the best one, which is still trusted (§6.4)."""
    new_points, old_points = _kind_points(new), _kind_points(old)
    low, high = sorted((int(new_latency * 1e9), int(old_latency * 1e9)))
    lead = 100 - 100 * low // high if high else 0
    if new_latency < old_latency:
        new_points += lead
    else:
        old_points += lead
    return new_points > old_points and not (new_points <= 1 and old_points == 0)


_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


def _kind_points(endpoint: Endpoint) -> int:
    address = ipaddress.ip_address(unmapped(endpoint[0]))
    points = 50 if address.is_loopback else 20 if any(address in network for network in _PRIVATE) else 0
    return points + (10 if address.version == 6 else 0)


def _usable(endpoint: Endpoint) -> bool:
    """Whether an address in a call-me-maybe is worth a ping: never one inside a tunnel, nor a link-local one."""
    address = endpoint[0]
    if address.startswith(CODER_PREFIX):
        return False
    return not (address[0] == 0xFE and address[1] & 0xC0 == 0x80) and endpoint[1] != 0
