"""Inner packets: IPv6 without extension headers, checksums, TSMP, ICMPv6 echo and UDP (tailnet.md §2, §8).

Packets are complete IPv6 packets, addresses are 16 raw bytes. TCP has its own room, `agent.protocol.tcp`, and takes
the header rules and the checksum from here.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple

TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
TSMP: Final = 99

MTU: Final = 1280
"""Never send an inner packet of more bytes."""
HEADER_SIZE: Final = 40
MAX_UDP_PAYLOAD: Final = MTU - HEADER_SIZE - 8
HOP_LIMIT: Final = 64

Buffer = bytes | bytearray | memoryview
Endpoint = tuple[bytes, int]
"""Address (16 bytes, IPv4 as ::ffff:a.b.c.d) and port of a UDP endpoint, as disco and STUN name it."""

_HEADER = struct.Struct(">IHBB16s16s")
_UDP = struct.Struct(">HHHH")
_LENGTH = struct.Struct(">H")
_VERSION = 6 << 28
_FLOW_MASK = (1 << 20) - 1
_ECHO_REQUEST, _ECHO_REPLY = 128, 129
_TSMP_PING, _TSMP_PONG = 0x70, 0x6F
_TSMP_DATA = 8
_IPV4_MAPPED = bytes(10) + b"\xff\xff"


def mapped(address: bytes) -> bytes:
    """A 4-byte address in the 16-byte form; a 16-byte one as it is."""
    return _IPV4_MAPPED + address if len(address) == 4 else address


def unmapped(address: bytes) -> bytes:
    """The 4 bytes of an IPv4 address in the 16-byte form; any other address as it is."""
    return address[12:] if address.startswith(_IPV4_MAPPED) else address


def endpoint_text(endpoint: Endpoint) -> str:
    """`ip:port` or `[v6]:port`."""
    address = ipaddress.ip_address(unmapped(endpoint[0]))
    return f"[{address}]:{endpoint[1]}" if address.version == 6 else f"{address}:{endpoint[1]}"


def is_packet(packet: Buffer) -> bool:
    """Whether this is one IPv6 packet, no byte more or less."""
    return (
        len(packet) >= HEADER_SIZE
        and packet[0] >> 4 == 6
        and _LENGTH.unpack_from(packet, 4)[0] == len(packet) - HEADER_SIZE
    )


def next_header(packet: Buffer) -> int:
    """What is at offset 40 of a packet; extension headers are no protocol that anybody here handles (§2.3)."""
    return packet[6]


def source(packet: Buffer) -> bytes:
    return bytes(packet[8:24])


def destination(packet: Buffer) -> bytes:
    return bytes(packet[24:40])


def checksum_of(packet: Buffer) -> int:
    """The Internet checksum over pseudo-header and payload of a TCP, UDP or ICMPv6 packet.

    0 for a packet whose checksum is right; the value to fill in where the checksum field is still zero (UDP sends
    65535 in place of 0).
    """
    # 2**16 is 1 modulo 65535: the big-endian number is congruent to the sum of its 16-bit words.
    size = len(packet)
    total = int.from_bytes(packet[8:], "big")
    if size & 1:
        total <<= 8
    return -(total + size - HEADER_SIZE + packet[6]) % 65535


def build(source: bytes, destination: bytes, protocol: int, payload: bytes, flow: int = 0) -> bytes:
    """A packet around a payload, which has its checksum already."""
    return _HEADER.pack(_VERSION | flow, len(payload), protocol, HOP_LIMIT, source, destination) + payload


class Datagram(NamedTuple):
    """A UDP datagram inside the tunnel."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    payload: bytes


def parse_udp(packet: Buffer) -> Datagram | None:
    """The datagram of a packet with next header 17, None when it is malformed or its checksum is wrong."""
    if len(packet) < HEADER_SIZE + 8:
        return None
    source_port, destination_port, size, checksum = _UDP.unpack_from(packet, HEADER_SIZE)
    # IPv6 demands a checksum: zero means that there is none.
    if size != len(packet) - HEADER_SIZE or not checksum or checksum_of(packet):
        return None
    return Datagram(source(packet), source_port, destination(packet), destination_port, bytes(packet[48:]))


def build_udp(datagram: Datagram) -> bytes:
    """Raises ValueError for a payload that does not fit (`MAX_UDP_PAYLOAD`)."""
    size = len(datagram.payload)
    if size > MAX_UDP_PAYLOAD:
        raise ValueError(f"a UDP payload of {size} bytes, the limit in the tunnel is {MAX_UDP_PAYLOAD}")
    ports = (datagram.source_port, datagram.destination_port)
    packet = bytearray(build(datagram.source, datagram.destination, UDP, _UDP.pack(*ports, size + 8, 0)))
    _LENGTH.pack_into(packet, 4, size + 8)
    packet += datagram.payload
    _LENGTH.pack_into(packet, HEADER_SIZE + 6, checksum_of(packet) or 0xFFFF)
    return bytes(packet)


def echo_reply(packet: Buffer) -> bytes | None:
    """The answer to an ICMPv6 Echo Request; None for any other ICMPv6 packet and for a wrong checksum (§8.2)."""
    if len(packet) < HEADER_SIZE + 8 or packet[40] != _ECHO_REQUEST or packet[41] or checksum_of(packet):
        return None
    reply = bytearray(build(destination(packet), source(packet), ICMPV6, bytes(packet[HEADER_SIZE:])))
    reply[40] = _ECHO_REPLY
    _LENGTH.pack_into(reply, 42, 0)
    _LENGTH.pack_into(reply, 42, checksum_of(reply))
    return bytes(reply)


def tsmp_ping(source: bytes, destination: bytes, data: bytes) -> bytes:
    """A reachability test with 8 bytes that come back (§8.1)."""
    assert len(data) == _TSMP_DATA
    return build(source, destination, TSMP, bytes((_TSMP_PING,)) + data)


def tsmp_pong(packet: Buffer) -> bytes | None:
    """The answer to a TSMP ping, None for any other TSMP packet (§8.1)."""
    if len(packet) < HEADER_SIZE + 1 + _TSMP_DATA or packet[40] != _TSMP_PING:
        return None
    payload = bytes((_TSMP_PONG,)) + bytes(packet[41:49]) + bytes(2)  # a peer API port of 0: there is none
    flow = int.from_bytes(packet[:4], "big") ^ _FLOW_MASK
    return build(destination(packet), source(packet), TSMP, payload, flow & _FLOW_MASK)


def parse_tsmp_pong(packet: Buffer) -> bytes | None:
    """The 8 bytes of the ping that a pong answers, None for any other TSMP packet."""
    if len(packet) < HEADER_SIZE + 1 + _TSMP_DATA or packet[40] != _TSMP_PONG:
        return None
    return bytes(packet[41:49])
