"""Curve25519 keys of nodes, relays and disco: 32 raw bytes in memory, and their forms in text and in messages.

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
NODE_PREFIX = "nodekey:"
DISCO_PREFIX = "discokey:"
NODE_BINARY_PREFIX = b"np"

Random = Callable[[int], bytes]


class KeyFormatError(ValueError):
    """Not a key; the text says in which form it was expected. The value itself is not repeated."""


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


def node_text(key: bytes) -> str:
    """`nodekey:` and 64 hexadecimal digits."""
    return NODE_PREFIX + key.hex()


def parse_node_text(text: str) -> bytes:
    """Raises `KeyFormatError`."""
    return _parse(text, NODE_PREFIX)


def disco_text(key: bytes) -> str:
    """`discokey:` and 64 hexadecimal digits: how a disco key stands in a Node message (§11.1)."""
    return DISCO_PREFIX + key.hex()


def parse_disco_text(text: str) -> bytes:
    """Raises `KeyFormatError`."""
    return _parse(text, DISCO_PREFIX)


def node_binary(key: bytes) -> bytes:
    """`np` and the raw key: how a node key stands in a Node message (§11.1)."""
    return NODE_BINARY_PREFIX + key


def parse_node_binary(data: bytes) -> bytes:
    """Raises `KeyFormatError`."""
    if len(data) != len(NODE_BINARY_PREFIX) + KEY_SIZE or not data.startswith(NODE_BINARY_PREFIX):
        raise KeyFormatError(f'a node key is "np" and {KEY_SIZE} bytes')
    return data[len(NODE_BINARY_PREFIX) :]


def _parse(text: str, prefix: str) -> bytes:
    digits = text.removeprefix(prefix)
    if len(digits) == len(text) or len(digits) != 2 * KEY_SIZE or not digits.isascii() or not digits.isalnum():
        raise KeyFormatError(f'a key is written as "{prefix}" and {2 * KEY_SIZE} hexadecimal digits')
    try:
        return bytes.fromhex(digits)
    except ValueError as error:
        raise KeyFormatError(f'a key is written as "{prefix}" and {2 * KEY_SIZE} hexadecimal digits') from error
