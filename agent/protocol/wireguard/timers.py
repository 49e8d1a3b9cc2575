"""When a peer needs something by itself (tailnet.md §7.6): five deadlines and the rules that move them.

Times are seconds on any monotonic scale; a deadline that is not armed is infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0
DEAD_PEER_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
ERASE_AFTER = 540.0
MAX_JITTER = 0.333
MAX_RETRIES = 18
"""Initiations repeated before giving up: about 90 s."""

IMMEDIATELY = -inf
"""A deadline that has passed whatever the time is."""


class Timers:
    """State only: whoever looks at a deadline that has passed acts, and clears it."""

    __slots__ = (
        "_jitter",
        "_persistent",
        "dead_peer",
        "erase",
        "keepalive",
        "persistent",
        "resend",
        "retries",
    )

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._persistent = 0.0
        self.resend = inf
        """The initiation is due again."""
        self.keepalive = inf
        """Data was received and nothing sent since."""
        self.dead_peer = inf
        """Data was sent and nothing authenticated received since."""
        self.erase = inf
        """All keys are too old."""
        self.persistent = inf
        self.retries = 0

    def deadline(self) -> float:
        """The earliest of all."""
        return min(self.resend, self.keepalive, self.dead_peer, self.erase, self.persistent)

    def set_persistent(self, interval: float) -> None:
        """Switches the persistent keepalive, 0 for off. Switched on, it is due at once."""
        if interval and not self._persistent:
            self.persistent = IMMEDIATELY
        elif not interval:
            self.persistent = inf
        self._persistent = interval

    def data_sent(self, now: float) -> None:
        """A transport packet with content was sent."""
        if self.dead_peer == inf:
            self.dead_peer = now + DEAD_PEER_TIMEOUT + self._jitter()

    def data_received(self, now: float) -> None:
        """A transport packet with content was received."""
        if self.keepalive == inf:
            self.keepalive = now + KEEPALIVE_TIMEOUT

    def authenticated_sent(self, now: float) -> None:
        """Any message of a known peer was sent, handshakes included."""
        self.keepalive = inf
        if self._persistent:
            self.persistent = now + self._persistent

    def authenticated_received(self, now: float) -> None:
        """Any message was received that proves the peer alive, handshakes included."""
        self.dead_peer = inf
        if self._persistent:
            self.persistent = now + self._persistent

    def initiation_sent(self, now: float) -> None:
        """An initiation waits for its response from now on."""
        self.resend = now + REKEY_TIMEOUT + self._jitter()

    def handshake_complete(self) -> None:
        """The peer has the keys of the newest handshake."""
        self.resend = inf
        self.retries = 0

    def keys_derived(self, now: float) -> None:
        """There is a new keypair."""
        self.erase = now + ERASE_AFTER

    def forget(self) -> None:
        """Keys and handshake are gone. A persistent keepalive is due at once, for it makes a new handshake."""
        self.resend = self.keepalive = self.dead_peer = self.erase = inf
        self.retries = 0
        self.persistent = IMMEDIATELY if self._persistent else inf
