"""What is known about one peer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from agent.protocol.wireguard.cookies import Stamper
from agent.protocol.wireguard.keypairs import Keypairs
from agent.protocol.wireguard.timers import Timers

if TYPE_CHECKING:
    from agent.protocol.wireguard.noise import Initiated, Remote

MAX_QUEUED = 128
"""Packets that wait for a keypair; the oldest one makes room."""


class Peer:
    """A handle for the device's owner, who reads the public names; the rest belongs to the device."""

    __slots__ = (
        "_accepted_at",
        "_accepted_stamp",
        "_addresses",
        "_attempted_at",
        "_initiated",
        "_initiated_index",
        "_keypairs",
        "_last_minute_used",
        "_queue",
        "_remote",
        "_responses",
        "_scheduled",
        "_stamp_ns",
        "_stamper",
        "_timers",
        "last_handshake",
        "public_key",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(self, remote: Remote, jitter: Callable[[], float]) -> None:
        self.public_key = remote.public
        self.last_handshake: float | None = None
        """When the newest session was established, on the scale of the device's `now`."""
        self.received_bytes = 0
        """Bytes of authenticated transport messages."""
        self.sent_bytes = 0
        self._remote = remote
        self._addresses: frozenset[bytes] = frozenset()
        self._keypairs = Keypairs()
        self._timers = Timers(jitter)
        self._stamper = Stamper(remote.public)
        self._queue: deque[bytes] = deque()
        self._initiated: Initiated | None = None
        self._initiated_index = 0
        self._responses = 0
        """How many responses to the initiation were tried."""
        self._attempted_at = -inf
        """When a handshake message was last sent."""
        self._accepted_at = -inf
        """When an initiation was last accepted, and its timestamp."""
        self._accepted_stamp = b""
        self._stamp_ns = 0
        self._last_minute_used = False
        """Whether the receive-side rekey of the current session was made."""
        self._scheduled = inf
        """The deadline by which the device looks at this peer."""

    @property
    def addresses(self) -> frozenset[bytes]:
        """What is routed to it and accepted from it."""
        return self._addresses

    def __repr__(self) -> str:
        return f"<Peer {self.public_key.hex()}>"
