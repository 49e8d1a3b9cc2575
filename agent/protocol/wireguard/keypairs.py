"""Session keys of one peer: previous, current, next (tailnet.md §7.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.protocol.wireguard.messages import NONCE, TRANSPORT, TRANSPORT_HEADER
from agent.protocol.wireguard.replay import ReplayWindow

if TYPE_CHECKING:
    from agent.protocol.wireguard.noise import SessionKeys
    from agent.protocol.wireguard.peer import Peer

REKEY_AFTER_TIME = 120.0
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_TIME = 180.0
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
LAST_MINUTE = 165.0
"""Age after which the initiator of a keypair makes a new one on receiving: keepalive and rekey timeout before 180 s."""

_PADDING = tuple(bytes(count) for count in range(16))


def invalid_tag() -> type[Exception]:
    """What `Keypair.decrypt` raises for what does not open; for an `except`, which asks when something was raised."""
    from cryptography.exceptions import InvalidTag

    return InvalidTag


class Keypair:
    """The keys of one session. `decrypt` and `window` are for the receiving loop, which reads them directly."""

    __slots__ = (
        "_encrypt",
        "_remote_index",
        "counter",
        "created",
        "decrypt",
        "expires",
        "index",
        "initiator",
        "peer",
        "window",
    )

    def __init__(self, peer: Peer, keys: SessionKeys, index: int, initiator: bool, now: float) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # loaded by the handshake

        self.peer = peer
        self.index = index
        self.initiator = initiator
        self.created = now
        self.expires = now + REJECT_AFTER_TIME
        self.counter = 0
        """The next one to send with."""
        self.decrypt = ChaCha20Poly1305(keys.receive).decrypt
        self.window = ReplayWindow()
        self._encrypt = ChaCha20Poly1305(keys.send).encrypt
        self._remote_index = keys.remote_index

    def may_send(self, now: float) -> bool:
        """Whether it may seal any more."""
        return now < self.expires and self.counter < REJECT_AFTER_MESSAGES

    def wants_successor_on_send(self, now: float) -> bool:
        """Whether a new handshake is due after sending with it."""
        return self.counter > REKEY_AFTER_MESSAGES or (self.initiator and now - self.created > REKEY_AFTER_TIME)

    def wants_successor_on_receive(self, now: float) -> bool:
        """Whether a new handshake is due after receiving with it."""
        return self.initiator and now - self.created > LAST_MINUTE

    def seal(self, packets: Sequence[bytes]) -> list[bytes]:
        """Transport messages of inner packets, padded to 16 bytes; an empty packet is a keepalive (§7.7)."""
        encrypt, index, counter = self._encrypt, self._remote_index, self.counter
        header, nonce, padding = TRANSPORT_HEADER.pack, NONCE.pack, _PADDING
        sealed = []
        for packet in packets:
            spare = -len(packet) & 15
            if spare:
                packet = packet + padding[spare]
            sealed.append(header(TRANSPORT, index, counter) + encrypt(nonce(0, counter), packet, None))
            counter += 1
        self.counter = counter
        return sealed


class Keypairs:
    """The rotation. Each step returns the keypairs that are of no use any more, for their indices to be forgotten."""

    __slots__ = ("current", "next", "previous")

    def __init__(self) -> None:
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None
        """Made by our response, and not to be sent with before the peer has used it."""

    def initiated(self, keypair: Keypair) -> list[Keypair]:
        """Our initiation was answered: the peer knows the keypair, it is used at once."""
        if self.next is not None:
            dropped = (self.previous, self.current)
            self.previous = self.next
            self.next = None
        else:
            dropped = (self.previous, None)
            self.previous = self.current
        self.current = keypair
        return [old for old in dropped if old is not None]

    def responded(self, keypair: Keypair) -> list[Keypair]:
        """We answered an initiation."""
        dropped = (self.previous, self.next)
        self.previous = None
        self.next = keypair
        return [old for old in dropped if old is not None]

    def confirmed(self) -> list[Keypair]:
        """A valid transport packet arrived under `next`."""
        dropped = self.previous
        self.previous = self.current
        self.current = self.next
        self.next = None
        return [] if dropped is None else [dropped]

    def clear(self) -> list[Keypair]:
        """Forgets all."""
        dropped = (self.previous, self.current, self.next)
        self.previous = self.current = self.next = None
        return [old for old in dropped if old is not None]
