"""STUN binding requests and responses, both sides (tailnet.md §6.6, §11.6)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from agent.protocol.ip import Buffer, Endpoint, mapped, unmapped

TXID_SIZE: Final = 12
DEFAULT_PORT: Final = 3478

_HEADER = struct.Struct(">HHI12s")
_ATTRIBUTE = struct.Struct(">HH")
_COOKIE = 0x2112A442
_BINDING_REQUEST, _BINDING_RESPONSE = 0x0001, 0x0101
_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_ALTERNATE = 0x0001, 0x0020, 0x8020
_SOFTWARE, _FINGERPRINT = 0x8022, 0x8028
_SOFTWARE_NAME = b"tailnode"
_FINGERPRINT_MASK = 0x5354554E
_FINGERPRINT_SIZE = 8
_FAMILIES = {1: 4, 2: 16}


class Response(NamedTuple):
    """What a STUN server saw: the transaction that it answers, and where the request came from."""

    txid: bytes
    endpoint: Endpoint


def is_stun(datagram: Buffer) -> bool:
    """Whether a UDP datagram goes to STUN, before disco and WireGuard are asked (§1)."""
    return len(datagram) >= _HEADER.size and datagram[0] < 0x40 and datagram[4:8] == b"\x21\x12\xa4\x42"


def request(txid: bytes) -> bytes:
    """A binding request in the form that Coder's servers answer."""
    software = _ATTRIBUTE.pack(_SOFTWARE, len(_SOFTWARE_NAME)) + _SOFTWARE_NAME
    head = _HEADER.pack(_BINDING_REQUEST, len(software) + _FINGERPRINT_SIZE, _COOKIE, txid) + software
    return head + _fingerprint(head)


def parse_request(datagram: bytes) -> bytes | None:
    """The transaction id of a request made by `request`, None for any other: only those are answered (§6.6)."""
    if not is_stun(datagram):
        return None
    kind, size, _, txid = _HEADER.unpack_from(datagram)
    if kind != _BINDING_REQUEST or size != len(datagram) - _HEADER.size:
        return None
    attributes = list(_attributes(datagram))
    if (_SOFTWARE, _SOFTWARE_NAME) not in attributes or attributes[-1][0] != _FINGERPRINT:
        return None
    body, fingerprint = datagram[:-_FINGERPRINT_SIZE], datagram[-_FINGERPRINT_SIZE:]
    return txid if fingerprint == _fingerprint(body) else None


def response(txid: bytes, endpoint: Endpoint) -> bytes:
    """The answer to a request that came from `endpoint`."""
    address = unmapped(endpoint[0])
    family = 1 if len(address) == 4 else 2
    value = struct.pack(">BBH", 0, family, endpoint[1] ^ _COOKIE >> 16) + _xor(address, txid)
    return b"".join(
        (
            _HEADER.pack(_BINDING_RESPONSE, _ATTRIBUTE.size + len(value), _COOKIE, txid),
            _ATTRIBUTE.pack(_XOR_MAPPED_ADDRESS, len(value)),
            value,
        )
    )


def parse_response(datagram: bytes) -> Response | None:
    """A binding response with an address in it, None for anything else."""
    if not is_stun(datagram):
        return None
    kind, size, _, txid = _HEADER.unpack_from(datagram)
    if kind != _BINDING_RESPONSE or size > len(datagram) - _HEADER.size:
        return None
    fallback = None
    for name, value in _attributes(datagram[: _HEADER.size + size]):
        if name in (_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_ALTERNATE):
            endpoint = _endpoint(value, txid)
            if endpoint is not None:
                return Response(txid, endpoint)
        elif name == _MAPPED_ADDRESS:
            fallback = fallback or _endpoint(value, None)
    return None if fallback is None else Response(txid, fallback)


def _attributes(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Up to the first one that does not fit."""
    at = _HEADER.size
    while at + _ATTRIBUTE.size <= len(datagram):
        name, size = _ATTRIBUTE.unpack_from(datagram, at)
        at += _ATTRIBUTE.size
        if at + size > len(datagram):
            return
        yield name, datagram[at : at + size]
        at += size + -size % 4


def _endpoint(value: bytes, txid: bytes | None) -> Endpoint | None:
    """The address in an attribute, which is XORed where a transaction id is given."""
    if len(value) < 4:
        return None
    size = _FAMILIES.get(value[1])
    if size is None or len(value) < 4 + size:
        return None
    port = int.from_bytes(value[2:4], "big")
    address = value[4 : 4 + size]
    if txid is not None:
        port ^= _COOKIE >> 16
        address = _xor(address, txid)
    return mapped(address), port


def _xor(address: bytes, txid: bytes) -> bytes:
    size = len(address)
    mask = (_COOKIE.to_bytes(4, "big") + txid)[:size]
    return (int.from_bytes(address, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


def _fingerprint(body: bytes) -> bytes:
    return _ATTRIBUTE.pack(_FINGERPRINT, 4) + (zlib.crc32(body) ^ _FINGERPRINT_MASK).to_bytes(4, "big")
