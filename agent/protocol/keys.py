"""Curve25519 keys of nodes, relays and disco: 32 raw bytes. `agent.api.tailnet` knows how they stand in messages.

A node key is both the WireGuard identity and the DERP identity of a process; the disco key is another one
(tailnet.md §5.4, §6.1). Private keys are never written anywhere, so there is no text form for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from nacl.bindings import crypto_box_beforenm, crypto_scalarmult_base
from nacl.exceptions import CryptoError

KEY_SIZE = 32
ZERO = bytes(KEY_SIZE)

Random = Callable[[int], bytes]


class KeyFormatError(ValueError):
    """Not a key that can be used. The value itself is not repeated."""


def generate(random: Random = os.urandom) -> bytes:
    """A private key, clamped."""
    return clamp(random(KEY_SIZE))


def clamp(scalar: bytes) -> bytes:
    """The same 32 bytes as a private key of Curve25519 (§5.4)."""
    if len(scalar) != KEY_SIZE:
        raise KeyFormatError(f"a private key has {KEY_SIZE} bytes, not {len(scalar)}")
    return bytes((scalar[0] & 248, *scalar[1:31], scalar[31] & 127 | 64))


def public_key(private: bytes) -> bytes:
    """The public key of a private one."""
    return crypto_scalarmult_base(private)


def box_key(private: bytes, public: bytes) -> bytes:
    """What both ends of a NaCl box derive once and use for every box (HSalsa20 of the X25519 secret).

    Raises `KeyFormatError` for a public key with which no secret can be shared (one of low order).
    """
    try:
        return crypto_box_beforenm(public, private)
    except CryptoError as error:
        raise KeyFormatError("a public key that gives no shared secret") from error
