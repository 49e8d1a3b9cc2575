"""TCP segments inside IPv6 packets: building, options, the checksum (tailnet.md §2.3, §8.3).

An IPv6 packet without extension headers holds its addresses in the bytes 8 to 40 and the TCP header right after, so
that the checksum runs over one contiguous piece: addresses, header and payload, plus length and protocol number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

MASK = 0xFFFFFFFF
"""Sequence numbers and timestamps are taken modulo 2^32."""
IP_HEADER = 40
MIN_PACKET = 60
"""Bytes of the smallest packet with a TCP header."""
TIMESTAMP_MARK = 0x0101080A
"""NOP, NOP, kind 8, length 10: how everyone lays out the timestamps option of a data segment."""
SACK_MARK = 0x01010500
"""NOP, NOP, kind 5; the length goes into the last byte."""
MAX_WINDOW_SCALE = 14

IP = struct.Struct(">IHBB")
"""Version, class and label; payload length; next header; hop limit."""
TCP = struct.Struct(">IIHHHH")
"""The TCP header behind the ports: sequence number, acknowledgement, offset and flags, window, checksum, urgent."""
PORTS = struct.Struct(">HH")
TIMESTAMPS = struct.Struct(">III")
BLOCK = struct.Struct(">II")

_VERSION_6 = 0x60000000
_PROTOCOL = 6
_HOP_LIMIT = 64

_HALF_BITS = 4832
_HALF = (1 << _HALF_BITS) - 1
_QUARTER_BITS = 2416
_QUARTER = (1 << _QUARTER_BITS) - 1


def ones_sum(data: bytes | memoryview) -> int:
    """The ones' complement sum of `data` as 16-bit words, modulo 65535; an odd end is padded with zero.

    A remainder by 65535 is that sum, because 65536 = 1 there. Folding a long number at multiples of 16 bits before the
    division does not change it and takes a third off the time.
    """
    value = int.from_bytes(data, "big")
    size = len(data)
    if size & 1:
        value <<= 8
    if size > 600:
        value = (value >> _HALF_BITS) + (value & _HALF)
        value = (value >> _QUARTER_BITS) + (value & _QUARTER)
    return value % 65535


@dataclass(slots=True)
class Options:
    """The options of a segment that matter here; None where one is missing."""

    mss: int | None = None
    window_scale: int | None = None
    sack_permitted: bool = False
    timestamp: int | None = None
    echo: int = 0
    blocks: tuple[tuple[int, int], ...] = ()


def parse_options(data: bytes | memoryview) -> Options:
    """What the options between header and payload say. One cut short ends the list; unknown ones are skipped."""
    options = Options()
    at, end = 0, len(data)
    while at < end:
        kind = data[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        if at + 1 >= end:
            break
        length = data[at + 1]
        if length < 2 or at + length > end:
            break
        if kind == 2 and length == 4:
            options.mss = data[at + 2] << 8 | data[at + 3]
        elif kind == 3 and length == 3:
            options.window_scale = min(data[at + 2], MAX_WINDOW_SCALE)
        elif kind == 4 and length == 2:
            options.sack_permitted = True
        elif kind == 5 and length >= 10 and length % 8 == 2:
            options.blocks = tuple(BLOCK.iter_unpack(data[at + 2 : at + length]))
        elif kind == 8 and length == 10:
            options.timestamp, options.echo = BLOCK.unpack_from(data, at + 2)
        at += length
    return options


def syn_options(mss: int, window_scale: int | None, sack: bool, timestamp: int | None, echo: int) -> bytes:
    """The options of a SYN or SYN-ACK in the order of the peers: MSS, SACK-permitted and timestamps, NOP, scale."""
    text = struct.pack(">BBH", 2, 4, mss)
    if timestamp is not None:
        text += (b"\x04\x02" if sack else b"\x01\x01") + struct.pack(">BBII", 8, 10, timestamp, echo)
    elif sack:
        text += b"\x01\x01\x04\x02"
    if window_scale is not None:
        text += struct.pack(">BBBB", 1, 3, 3, window_scale)
    return text


def ack_options(timestamp: int | None, echo: int, blocks: list[tuple[int, int]]) -> bytes:
    """The options of a pure acknowledgement; at most three blocks fit beside the timestamps."""
    text = b"" if timestamp is None else TIMESTAMPS.pack(TIMESTAMP_MARK, timestamp, echo)
    if blocks:
        text += struct.pack(">I", SACK_MARK | 2 + 8 * len(blocks))
        text += b"".join([BLOCK.pack(start & MASK, end & MASK) for start, end in blocks])
    return text


def build(
    flow: bytes, seq: int, ack: int, flags: int, window: int, options: bytes = b"", payload: bytes | memoryview = b""
) -> bytes:
    """A whole IPv6 packet. `flow` is source address, destination address, source port, destination port: 36 bytes."""
    length = 20 + len(options) + len(payload)
    offset_flags = (20 + len(options)) << 10 | flags
    total = ones_sum(flow) + _PROTOCOL + length + seq + ack + offset_flags + window
    total += ones_sum(options) + ones_sum(payload)
    head = IP.pack(_VERSION_6, length, _PROTOCOL, _HOP_LIMIT) + flow
    return b"".join((head, TCP.pack(seq, ack, offset_flags, window, -total % 65535, 0), options, payload))


def head_of(flow: bytes, length: int) -> tuple[bytes, int]:
    """The first 44 bytes of a packet with `length` bytes of TCP header and payload, and what they add to the sum."""
    return IP.pack(_VERSION_6, length, _PROTOCOL, _HOP_LIMIT) + flow, ones_sum(flow) + _PROTOCOL + length


def reset_for(reverse_flow: bytes, seq: int, ack: int, flags: int, length: int) -> bytes:
    """The RST that answers a segment without a connection (RFC 9293 §3.10.7.1); `length` counts its SYN and FIN."""
    if flags & ACK:
        return build(reverse_flow, ack, 0, RST, 0)
    return build(reverse_flow, 0, (seq + length) & MASK, RST | ACK, 0)


def reverse(flow: bytes) -> bytes:
    """The flow seen from the other end."""
    return flow[16:32] + flow[:16] + flow[34:36] + flow[32:34]
