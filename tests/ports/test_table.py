"""What the kernel says, read from its bytes."""

from __future__ import annotations

import errno
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.ports.table import DiagAnswer, diag_answer, diag_request, identity, listeners

HEAD = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode     \n"
NOWHERE = b"00000000000000000000000000000000"
TCP = (
    HEAD
    + b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 0  1000        0 39571 1 0 100 0 0 \n"
    + b"   1: 00000000:07E8 00000000:0000 0A 00000000:00000005 02:00000C5D 00000000     0        0 35 2 0 100 0 0 \n"
    + b"   2: 0100007F:1F90 0100007F:D0E2 01 00000000:00000000 00:00000000 0  1000        0 39580 1 0 20 4 30 \n"
    + b"   3: 0100007F:D0E2 0100007F:1F90 06 00000000:00000000 03:00001771 00000000     0        0 0 3 0\n"
)
TCP6 = HEAD + (
    b"   0: %s:0050 %s:0000 0A 00000000:00000000 00:00000000 00000000     0        0 23 1 0\n" % (NOWHERE, NOWHERE)
)


def test_only_rows_that_listen() -> None:
    assert listeners(TCP) == [(8080, 39571), (2024, 35)]
    assert listeners(TCP6) == [(80, 23)]


@given(st.binary())
def test_any_table(table: bytes) -> None:
    assert listeners(table) == []


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.sampled_from([1, 6, 10]))))
def test_any_rows(rows: list[tuple[int, int, int]]) -> None:
    table = "  sl  local_address ...\n" + "".join(
        f"{number:4d}: 0100007F:{port:04X} 00000000:0000 {state:02X} 00000000:00000000 00:00000000 00000000 "
        f"{1000:5d} {0:8d} {inode} 1 0000000000000000 100 0 0 10 0\n"
        for number, (port, inode, state) in enumerate(rows)
    )
    assert listeners(table.encode()) == [(port, inode) for port, inode, state in rows if state == 10]


# ---- netlink


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 0, 0) + body + bytes(-len(body) % 4)


def sock(port: int, inode: int, attributes: bytes = b"") -> bytes:
    return message(
        20, struct.pack(">BBBBHH", 2, 10, 0, 0, port, 0) + bytes(44) + bytes(16) + struct.pack("=I", inode) + attributes
    )


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.binary(max_size=9))), st.booleans())
def test_sockets_of_a_packet(sockets: list[tuple[int, int, bytes]], done: bool) -> None:
    packet = b"".join(sock(*entry) for entry in sockets)
    pairs = [(port, inode) for port, inode, _ in sockets]
    assert diag_answer(packet + message(3, bytes(4)) if done else packet) == DiagAnswer(pairs, done)


def test_an_error_of_the_kernel() -> None:
    packet = message(2, struct.pack("=i", -errno.ENOENT) + bytes(16))
    assert diag_answer(packet) == DiagAnswer([], True, errno.ENOENT)


@given(st.binary())
def test_any_packet(packet: bytes) -> None:
    answer = diag_answer(packet)
    assert answer.done or not answer.error
    assert len(answer.sockets) <= len(packet) // 88


@given(st.integers(1, 87))
def test_a_packet_that_is_cut(length: int) -> None:
    assert diag_answer(sock(80, 7)[:length]).error == errno.EPROTO


def test_the_request_is_what_the_kernel_takes() -> None:
    request = diag_request(socket.AF_INET)
    assert len(request) == 72 == struct.unpack_from("=I", request)[0]
    assert request[16:24] == bytes([2, 6, 0, 0]) + struct.pack("=I", 1 << 10)


# ---- processes


def test_a_process() -> None:
    fields = b"S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 10 11\n"
    assert identity(b"12 (node) " + fields) == ("node", 4711)
    assert identity(b"12 (a) (b c)) " + fields) == ("a) (b c)", 4711)


@given(st.binary())
def test_any_text_about_a_process(stat: bytes) -> None:
    found = identity(stat)
    assert found is None or found[1] >= 0


@given(st.integers(1, 2**22), st.text(st.characters(exclude_characters="\0\n"), max_size=15), st.integers(0, 2**62))
def test_any_process(pid: int, name: str, started: int) -> None:
    stat = f"{pid} ({name}) S {' '.join(['1'] * 18)} {started} 0 0\n"
    assert identity(stat.encode("utf-8", "surrogatepass")) is not None
    if name.isprintable():
        assert identity(stat.encode()) == (name, started)
