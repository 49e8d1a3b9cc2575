"""Disco against the vectors of tailnet.md §11.3."""

from __future__ import annotations

import contextlib
import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import disco
from agent.protocol.disco import CallMeMaybe, DiscoError, Ping, Pong
from agent.protocol.ip import mapped
from agent.protocol.keys import box_key
from tests.protocol.test_keys import AGENT_DISCO, CLIENT_DISCO, CLIENT_NODE

KEY = box_key(CLIENT_DISCO[0], AGENT_DISCO[1])
TXID = bytes(range(1, 13))
PING = Ping(TXID, CLIENT_NODE[1])
PONG = Pong(TXID, disco.derp_source(999))
CALL = CallMeMaybe(((mapped(ip_address("203.0.113.7").packed), 41641), (ip_address("2001:db8::7").packed, 41641)))

PING_V0 = """
5453f09f92acff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419
731c1fff3e6b808182838485868788898a8b8c8d8e8f90919293949596970e60
ccaae90e9ba16266604286022bf1e342929c5d3a3827fd5891c617d19d69226c
cb282ccdeafdaea9db07157cec2cc7f3eab1623bb9685a8de34045c4"""
PING_V1_START = """
5453f09f92acff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419
731c1fff3e6b808182838485868788898a8b8c8d8e8f90919293949596973969
b322a8c4c4aa5c50b382ee9856b7e343929c5d3a3827fd5891c617d19d69226c
cb282ccdeafdaea9db07157cec2cc7f3eab1623bb9685a8de34045c45522e82c"""
PING_V1_SHA256 = "43fb25a62ff2f84e53a1008190face2f153baef9ed28c5909eb0b57bc37f15b7"
PONG_V0 = """
5453f09f92ac7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee
19a4cb8a1b14a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7c2f5
aa28f729f2f641665f68356967e5f2d1ff953c7ae493bd91b81d2921ce4399f7
026ccdb8e6e100e7460d802f5077"""
PONG_V1_START = """
5453f09f92ac7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee
19a4cb8a1b14a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7dd49
010f4de43a2973ffacd5191e2cc4f2d0ff953c7ae493bd91b81d2921ce4399f7
026ccdb8e6e100e7460d802f50778787c16a52996bf4372144ad742ddefc8829"""
PONG_V1_SHA256 = "d3d5c815d708cd61b6ab956aa7f5927dd8e6e87176716bee0ead8a45a31e3f4b"
CALL_ME_MAYBE = """
5453f09f92acff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419
731c1fff3e6bc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7ebfc
a2fbdea54ed820839201324c6d0dcb12d2a92b7ee58dc75184747a8888dc60c1
60e63734e3c5ef1c2468f467b56c425497b438a5"""


def nonce(first: int) -> bytes:
    return bytes(range(first, first + disco.NONCE_SIZE))


@pytest.mark.spec("tailnet", 4)
@pytest.mark.parametrize(
    ("message", "from_key", "first", "packet"),
    [
        (PING, CLIENT_DISCO[1], 0x80, PING_V0),
        (PONG, AGENT_DISCO[1], 0xA0, PONG_V0),
        (CALL, CLIENT_DISCO[1], 0xC0, CALL_ME_MAYBE),
    ],
)
def test_version_0(message: disco.Sendable, from_key: bytes, first: int, packet: str) -> None:
    wire = bytes.fromhex(packet)
    assert disco.seal(message, from_key, KEY, nonce(first)) == wire
    assert disco.is_disco(wire)
    assert disco.sender(wire) == from_key
    assert disco.open_box(wire, KEY) == message
    assert disco.open_box(memoryview(wire), KEY) == message


@pytest.mark.spec("tailnet", 4)
@pytest.mark.parametrize(
    ("message", "from_key", "first", "start", "digest"),
    [
        (PING, CLIENT_DISCO[1], 0x80, PING_V1_START, PING_V1_SHA256),
        (PONG, AGENT_DISCO[1], 0xA0, PONG_V1_START, PONG_V1_SHA256),
    ],
)
def test_version_1(message: disco.Sendable, from_key: bytes, first: int, start: str, digest: str) -> None:
    wire = disco.seal(message, from_key, KEY, nonce(first), padded=True)
    assert len(wire) == disco.PADDED_SIZE
    assert wire[:128] == bytes.fromhex(start)
    assert hashlib.sha256(wire).hexdigest() == digest
    assert disco.open_box(wire, KEY) == message


@pytest.mark.spec("tailnet", 4)
def test_messages_that_are_longer_or_shorter_than_usual() -> None:
    assert disco.decode(b"\x01\x00" + TXID) == Ping(TXID)
    assert disco.decode(b"\x01\x07" + TXID + b"half a key") == Ping(TXID)
    assert disco.decode(disco.encode(PONG) + b"tail") == PONG
    assert disco.decode(b"\x03\x00") == CallMeMaybe(())
    assert disco.decode(disco.encode(CALL) + b"x") == CallMeMaybe(())
    assert disco.decode(b"\x03\x01" + disco.encode(CALL)[2:]) == CallMeMaybe(())
    assert disco.encode(CALL, padded=True) == disco.encode(CALL)
    assert disco.decode(b"\x09\x00whatever") == disco.Unknown(9)


@pytest.mark.parametrize("plain", [b"", b"\x01", b"\x01\x00" + TXID[1:], b"\x02\x00" + bytes(29)])
def test_messages_that_are_too_short(plain: bytes) -> None:
    with pytest.raises(DiscoError):
        disco.decode(plain)


@given(st.integers(0, 8 * (116 - 38) - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    wire = bytearray(bytes.fromhex(CALL_ME_MAYBE))
    wire[38 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(DiscoError, match="does not open"):
        disco.open_box(wire, KEY)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for parse in (disco.decode, lambda tail: disco.open_box(disco.MAGIC + tail, KEY)):
        with contextlib.suppress(DiscoError):
            parse(data)
    assert not disco.is_disco(data) or data.startswith(disco.MAGIC)
