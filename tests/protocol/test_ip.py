"""Inner packets against the vectors of tailnet.md §11.1, §11.5 and §11.7, and against a sum done by hand."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.tailnet import agent_addresses
from agent.protocol import ip

AGENT = UUID("8a3c5d1e-0b7f-4c2a-9d6e-1f2e3d4c5b6a")
CLIENT = UUID("11111111-2222-4333-8444-555555555555")
AGENT_ADDRESS, CLIENT_ADDRESS = agent_addresses(AGENT)[0], agent_addresses(CLIENT)[0]
PING = bytes.fromhex(
    "6000000000096340fd7a115ca1e043338444555555555555fd7a115ca1e04c2a9d6e1f2e3d4c5b6a700102030405060708"
)
PONG = bytes.fromhex(
    "600fffff000b6340fd7a115ca1e04c2a9d6e1f2e3d4c5b6afd7a115ca1e0433384445555555555556f01020304050607080000"
)
SYN = bytes.fromhex(
    "6000000000280640fd7a115ca1e043338444555555555555fd7a115ca1e04c2a"
    "9d6e1f2e3d4c5b6ac93b1f900000100000000000a0025f00e2590000020404c4"
    "0402080a112233440000000001030307"
)
addresses = st.binary(min_size=16, max_size=16)
ports = st.integers(0, 65535)
datagrams = st.builds(ip.Datagram, addresses, ports, addresses, ports, st.binary(max_size=ip.MAX_UDP_PAYLOAD))


def slow_sum(packet: bytes) -> int:
    """RFC 1071, as it is written there."""
    payload = packet[40:]
    data = packet[8:40] + len(payload).to_bytes(4, "big") + bytes((0, 0, 0, packet[6])) + payload
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@pytest.mark.spec("tailnet", 46)
def test_tsmp() -> None:
    assert ip.is_packet(PING)
    assert ip.next_header(PING) == ip.TSMP
    assert ip.tsmp_ping(CLIENT_ADDRESS, AGENT_ADDRESS, bytes(range(1, 9))) == PING
    assert ip.tsmp_pong(PING) == PONG
    assert ip.parse_tsmp_pong(PONG) == bytes(range(1, 9))


def test_tsmp_packets_without_an_answer() -> None:
    for payload in (b"", b"p1234567", b"!12345678", b"o12345678"):
        assert ip.tsmp_pong(ip.build(CLIENT_ADDRESS, AGENT_ADDRESS, ip.TSMP, payload)) is None
    assert ip.tsmp_pong(ip.build(CLIENT_ADDRESS, AGENT_ADDRESS, ip.TSMP, b"p12345678 and more")) is not None
    assert ip.parse_tsmp_pong(PING) is None


def test_a_checksum_of_a_go_peer() -> None:
    assert ip.checksum_of(SYN) == 0
    assert ip.checksum_of(SYN[:56] + b"\0\0" + SYN[58:]) == 0xE259


@given(addresses, addresses, st.sampled_from([ip.TCP, ip.UDP, ip.ICMPV6]), st.binary(max_size=100))
def test_the_checksum_is_the_one_of_rfc_1071(source: bytes, destination: bytes, protocol: int, payload: bytes) -> None:
    packet = ip.build(source, destination, protocol, payload)
    # 0 and 0xffff are the same number to whoever adds.
    assert ip.checksum_of(packet) % 0xFFFF == slow_sum(packet) % 0xFFFF
    assert ip.checksum_of(memoryview(packet)) == ip.checksum_of(packet)


@given(datagrams)
def test_udp_comes_back(datagram: ip.Datagram) -> None:
    packet = ip.build_udp(datagram)
    assert ip.is_packet(packet)
    assert len(packet) <= ip.MTU
    assert packet[46:48] != b"\0\0"
    assert slow_sum(packet) == 0
    assert ip.parse_udp(packet) == datagram
    assert ip.parse_udp(memoryview(packet)) == datagram


@given(datagrams, st.data())
def test_a_damaged_datagram_is_dropped(datagram: ip.Datagram, data: st.DataObject) -> None:
    packet = bytearray(ip.build_udp(datagram))
    packet[data.draw(st.integers(8, len(packet) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert ip.parse_udp(packet) is None


def test_udp_without_a_checksum_or_too_long() -> None:
    datagram = ip.Datagram(CLIENT_ADDRESS, 1, AGENT_ADDRESS, 2, b"x")
    packet = ip.build_udp(datagram)
    assert ip.parse_udp(packet[:46] + b"\0\0" + packet[48:]) is None
    with pytest.raises(ValueError, match="1233 bytes, the limit in the tunnel is 1232"):
        ip.build_udp(datagram._replace(payload=bytes(1233)))


@pytest.mark.spec("tailnet", 59)
@given(addresses, addresses, st.binary(min_size=4, max_size=200))
def test_echo(source: bytes, destination: bytes, rest: bytes) -> None:
    request = bytearray(ip.build(source, destination, ip.ICMPV6, bytes((128, 0, 0, 0)) + rest))
    request[42:44] = ip.checksum_of(request).to_bytes(2, "big")
    reply = ip.echo_reply(request)
    assert reply is not None
    assert slow_sum(reply) in (0, 0xFFFF)
    assert (ip.source(reply), ip.destination(reply)) == (destination, source)
    assert reply[40:42] == bytes((129, 0))
    assert reply[44:] == rest
    assert ip.echo_reply(reply) is None
    request[-1] ^= 1
    assert ip.echo_reply(request) is None


@given(st.binary(max_size=100))
def test_any_bytes(packet: bytes) -> None:
    ip.is_packet(packet)
    for parse in (ip.parse_udp, ip.echo_reply, ip.tsmp_pong, ip.parse_tsmp_pong):
        parse(packet)


def test_what_is_a_packet() -> None:
    assert not ip.is_packet(PING[:-1])
    assert not ip.is_packet(PING + b"\0")
    assert not ip.is_packet(b"\x45" + PING[1:])
    assert not ip.is_packet(b"")


def test_addresses_of_ipv4() -> None:
    assert ip.mapped(b"\1\2\3\4").hex() == "00000000000000000000ffff01020304"
    assert ip.unmapped(ip.mapped(b"\1\2\3\4")) == b"\1\2\3\4"
    assert ip.unmapped(AGENT_ADDRESS) == ip.mapped(AGENT_ADDRESS) == AGENT_ADDRESS
