"""Disco: the packets with which peers find and test paths (tailnet.md §6.1-6.3).

`key` is always `keys.box_key(own disco private key, peer's disco public key)`, derived once per peer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from nacl.bindings import crypto_box_afternm, crypto_box_open_afternm
from nacl.exceptions import CryptoError

from agent.protocol.ip import Buffer, Endpoint

MAGIC: Final = b"TS\xf0\x9f\x92\xac"
HEADER_SIZE: Final = 62
"""Magic, the sender's disco key, nonce."""
NONCE_SIZE: Final = 24
TXID_SIZE: Final = 12
PADDED_SIZE: Final = 1310
"""Bytes of a version 1 ping or pong: it fits only through a path that carries full-size WireGuard datagrams."""

_MIN_SIZE = 38
_PADDED_BODY = PADDED_SIZE - HEADER_SIZE - 16 - 2
_PING, _PONG, _CALL_ME_MAYBE = 1, 2, 3
_ENDPOINT = struct.Struct(">16sH")
_PONG_BODY = struct.Struct(">12s16sH")
_DERP_ADDRESS = bytes(10) + b"\xff\xff" + bytes((127, 3, 3, 40))


class DiscoError(Exception):
    """Not a disco packet, or not sealed with this key."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong. `node_key` is the sender's, None where it was not sent."""

    txid: bytes
    node_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping; `source` is where it came from, as the responder saw it."""

    txid: bytes
    source: Endpoint


@dataclass(frozen=True, slots=True)
class CallMeMaybe:
    """Asks the receiver, by way of the relay, to ping these endpoints."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A kind of message that this version does not know; it is to be ignored."""

    kind: int


Sendable: TypeAlias = Ping | Pong | CallMeMaybe
Message: TypeAlias = Sendable | Unknown


def derp_source(region: int) -> Endpoint:
    """What stands for a relay region where an endpoint is asked for: 127.3.3.40 and the region as port."""
    return _DERP_ADDRESS, region & 0xFFFF


def is_disco(datagram: Buffer) -> bool:
    """Whether a datagram goes to disco and not to WireGuard (§1)."""
    return len(datagram) >= _MIN_SIZE and datagram[:6] == MAGIC


def sender(datagram: Buffer) -> bytes:
    """The disco public key that a datagram for which `is_disco` holds claims to be from."""
    return bytes(datagram[6:38])


def seal(message: Sendable, sender: bytes, key: bytes, nonce: bytes, *, padded: bool = False) -> bytes:
    """The datagram that carries `message` from `sender` (a disco public key) to the peer that shares `key`.

    `nonce` is 24 random bytes. `padded` makes pings and pongs version 1.
    """
    return b"".join((MAGIC, sender, nonce, crypto_box_afternm(encode(message, padded=padded), nonce, key)))


def open_box(datagram: Buffer, key: bytes) -> Message:
    """The message of a datagram for which `is_disco` holds. Raises `DiscoError`."""
    if len(datagram) < HEADER_SIZE + 16:
        raise DiscoError(f"a disco packet of {len(datagram)} bytes")
    try:
        plain = crypto_box_open_afternm(bytes(datagram[HEADER_SIZE:]), bytes(datagram[38:HEADER_SIZE]), key)
    except CryptoError as error:
        raise DiscoError("the box does not open") from error
    return decode(plain)


def encode(message: Sendable, *, padded: bool = False) -> bytes:
    """The bytes inside the box."""
    if isinstance(message, Ping):
        kind, body = _PING, message.txid + (message.node_key or b"")
    elif isinstance(message, Pong):
        kind, body = _PONG, _PONG_BODY.pack(message.txid, *message.source)
    else:
        kind, body, padded = _CALL_ME_MAYBE, b"".join(_ENDPOINT.pack(*end) for end in message.endpoints), False
    if padded:
        return bytes((kind, 1)) + body.ljust(_PADDED_BODY, b"\0")
    return bytes((kind, 0)) + body


def decode(plain: bytes) -> Message:
    """What was inside the box. Raises `DiscoError`."""
    if len(plain) < 2:
        raise DiscoError("a disco message without a header")
    kind, body = plain[0], plain[2:]
    if kind == _PING:
        if len(body) < TXID_SIZE:
            raise DiscoError("a disco ping that is too short")
        node_key = body[TXID_SIZE : TXID_SIZE + 32]
        return Ping(body[:TXID_SIZE], node_key if len(node_key) == 32 else None)
    if kind == _PONG:
        if len(body) < _PONG_BODY.size:
            raise DiscoError("a disco pong that is too short")
        txid, address, port = _PONG_BODY.unpack_from(body)
        return Pong(txid, (address, port))
    if kind == _CALL_ME_MAYBE:
        if plain[1] or len(body) % _ENDPOINT.size:
            return CallMeMaybe(())
        return CallMeMaybe(tuple(_ENDPOINT.iter_unpack(body)))
    return Unknown(kind)
