"""The bytes of tailnet.md §11.7, options and checksums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.tcp import Incoming, TcpStack
from agent.protocol.tcp.segment import (
    ACK,
    PSH,
    SYN,
    ack_options,
    build,
    ones_sum,
    parse_options,
    reset_for,
    reverse,
    syn_options,
)
from tests.protocol.tcp.link import A, B

SYN_PACKET = bytes.fromhex(
    "6000000000280640fd7a115ca1e043338444555555555555fd7a115ca1e04c2a"
    "9d6e1f2e3d4c5b6ac93b1f900000100000000000a0025f00e2590000020404c4"
    "0402080a112233440000000001030307"
)
RST_PACKET = bytes.fromhex(
    "6000000000140640fd7a115ca1e04c2a9d6e1f2e3d4c5b6afd7a115ca1e04333"
    "84445555555555551f90c93b000000000000100150140000ec9f0000"
)
FLOW = SYN_PACKET[8:44]


def plain_sum(data: bytes) -> int:
    """The sum as RFC 1071 writes it."""
    total = 0
    for index in range(0, len(data) - 1, 2):
        total += data[index] << 8 | data[index + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_syn_as_the_peers_send_it() -> None:
    options = syn_options(1220, 7, True, 0x11223344, 0)
    assert build(FLOW, 0x1000, 0, SYN, 24320, options) == SYN_PACKET


def test_the_reset_of_a_closed_port() -> None:
    assert reset_for(reverse(FLOW), 0x1000, 0, SYN, 1) == RST_PACKET


@pytest.mark.spec("tailnet", 54)
def test_refusing_a_syn_gives_exactly_that_reset() -> None:
    stack = TcpStack([B])
    (event,) = stack.receive([SYN_PACKET], 0.0)
    assert isinstance(event, Incoming)
    connection = event.connection
    assert (connection.local_address, connection.local_port) == (B, 8080)
    assert (connection.remote_address, connection.remote_port) == (A, 51515)
    assert stack.packets_to_send(0.0) == []
    connection.refuse()
    assert stack.packets_to_send(0.0) == [RST_PACKET]
    assert stack.connections == []
    assert stack.pending == 0


def test_the_options_of_the_syn() -> None:
    options = parse_options(SYN_PACKET[60:])
    assert options.mss == 1220
    assert options.window_scale == 7
    assert options.sack_permitted
    assert (options.timestamp, options.echo) == (0x11223344, 0)


def test_selective_acknowledgements_there_and_back() -> None:
    blocks = [(1, 5), (2**32 - 3, 7), (100, 200)]
    options = parse_options(ack_options(5, 6, blocks))
    assert (options.timestamp, options.echo, list(options.blocks)) == (5, 6, blocks)
    assert len(ack_options(5, 6, blocks)) == 40


@pytest.mark.parametrize("mark", [(True, 1), (True, None), (False, 1), (False, None)])
@pytest.mark.parametrize("scale", [7, None])
def test_every_choice_of_syn_options_is_whole_words(mark: tuple[bool, int | None], scale: int | None) -> None:
    sack, stamp = mark
    text = syn_options(1220, scale, sack, stamp, 0)
    assert len(text) % 4 == 0
    options = parse_options(text)
    assert (options.mss, options.window_scale, options.sack_permitted, options.timestamp) == (1220, scale, sack, stamp)


@given(st.binary(max_size=1400))
def test_the_sum_is_that_of_the_rfc(data: bytes) -> None:
    assert ones_sum(data) % 65535 == plain_sum(data) % 65535


@given(st.integers(0, 1220), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_what_is_built_sums_to_nothing(size: int, seq: int, ack: int, window: int) -> None:
    packet = build(FLOW, seq, ack, ACK | PSH, window, payload=bytes(range(256)) * 5 if size == 1220 else b"\xa5" * size)
    total = plain_sum(packet[8:]) + len(packet) - 40 + 6
    assert total % 65535 == 0


@given(st.binary(max_size=60))
def test_any_options_are_read_to_their_end(data: bytes) -> None:
    options = parse_options(data)
    assert len(options.blocks) <= 7
    assert options.window_scale is None or options.window_scale <= 14
