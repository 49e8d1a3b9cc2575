"""STUN against the vectors of tailnet.md §11.6."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import stun
from agent.protocol.ip import mapped

TXID = bytes(range(1, 13))
REQUEST = bytes.fromhex("000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f")
RESPONSE = bytes.fromhex("0101000c2112a4420102030405060708090a0b0c00200008000183bbea12d545")
ENDPOINT = (mapped(ip_address("203.0.113.7").packed), 41641)
IPV6 = (ip_address("2001:db8::7").packed, 3478)


def answer(*attributes: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack(">HH", name, len(value)) + value + bytes(-len(value) % 4) for name, value in attributes)
    return struct.pack(">HHI", 0x0101, len(body), 0x2112A442) + TXID + body


@pytest.mark.spec("tailnet", 5)
def test_request_and_response() -> None:
    assert stun.request(TXID) == REQUEST
    assert stun.parse_request(REQUEST) == TXID
    assert stun.response(TXID, ENDPOINT) == RESPONSE
    assert stun.parse_response(RESPONSE) == (TXID, ENDPOINT)
    assert stun.is_stun(REQUEST)
    assert stun.is_stun(RESPONSE)


@pytest.mark.spec("tailnet", 5)
def test_other_forms_of_a_response() -> None:
    xored = RESPONSE[24:]
    plain = b"\0\1" + (41641).to_bytes(2, "big") + ip_address("203.0.113.7").packed
    assert stun.parse_response(answer((0x8020, xored))) == (TXID, ENDPOINT)
    assert stun.parse_response(answer((1, plain))) == (TXID, ENDPOINT)
    assert stun.parse_response(answer((0x8022, b"odd"), (1, plain[:-1] + b"\x09"), (0x20, xored))) == (TXID, ENDPOINT)
    assert stun.parse_response(stun.response(TXID, IPV6)) == (TXID, IPV6)
    assert stun.parse_response(answer()) is None
    assert stun.parse_response(answer((0x20, b"\0\3" + xored[2:]), (0x20, xored[:-1]))) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda good: good[:-1],
        lambda good: good + b"\0",
        lambda good: good[:-1] + b"\0",
        lambda good: b"\1" + good[1:],
        lambda good: good[:30] + b"X" + good[31:],
        lambda good: good[:2] + b"\0\x0c" + good[4:32],
        lambda good: good[:2] + b"\0\0" + good[4:20],
        lambda good: b"",
    ],
)
def test_requests_that_are_not_answered(change: object) -> None:
    assert callable(change)
    assert stun.parse_request(change(REQUEST)) is None


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    for datagram in (data, REQUEST[:20] + data, RESPONSE[:20] + data, RESPONSE[:2] + data):
        stun.parse_request(datagram)
        stun.parse_response(datagram)


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=16, max_size=16), st.integers(0, 65535))
def test_every_endpoint_comes_back(txid: bytes, address: bytes, port: int) -> None:
    assert stun.parse_request(stun.request(txid)) == txid
    assert stun.parse_response(stun.response(txid, (address, port))) == (txid, (address, port))
