"""What people write for forwards, and what is listened to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.ip import Datagram
from agent.tailnet.port_forward import (
    MAX_FLOWS,
    UDP_IDLE,
    Forward,
    ForwardError,
    PortForwarder,
    _UdpForward,
    parse,
)
from agent.tailnet.streams import TailnetStream
from agent.tailnet.tailnet import TailnetError
from agent.testing import ManualClock

ADDRESS = bytes.fromhex("fd7a115ca1e0") + bytes(9) + b"\x01"


def tcp(*forwards: tuple[str, int, int]) -> list[Forward]:
    return [Forward("tcp", *forward) for forward in forwards]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", tcp(("127.0.0.1", 8080, 8080))),
        ("8080:80", tcp(("127.0.0.1", 8080, 80))),
        ("0:80", tcp(("127.0.0.1", 0, 80))),
        ("10.0.0.1:8080:80", tcp(("10.0.0.1", 8080, 80))),
        ("10.0.0.1:8080", tcp(("10.0.0.1", 8080, 8080))),
        ("localhost:8080:80", tcp(("localhost", 8080, 80))),
        ("my-host.example:8080", tcp(("my-host.example", 8080, 8080))),
        ("[::1]:8080:80", tcp(("::1", 8080, 80))),
        ("9000-9002", tcp(*(("127.0.0.1", port, port) for port in (9000, 9001, 9002)))),
        ("9000-9001:80-81", tcp(("127.0.0.1", 9000, 80), ("127.0.0.1", 9001, 81))),
        ("0.0.0.0:9000-9000:80", tcp(("0.0.0.0", 9000, 80))),
        ("8080, 9090:90", tcp(("127.0.0.1", 8080, 8080), ("127.0.0.1", 9090, 90))),
    ],
)
def test_forms(text: str, expected: list[Forward]) -> None:
    assert parse("tcp", text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no forward"),
        ("http", "is no forward"),
        ("8080:", "is no forward"),
        (":8080", "is no forward"),
        ("8080:80:90", "is no forward"),
        ("::1:8080", "is no forward"),
        ("8080,", "is no forward"),
        ("-1", "is no forward"),
        ("70000", "are no ports"),
        ("9001-9000", "are no ports"),
        ("9000-9002:80-81", "same length"),
        ("8080:0", "remote port 0"),
        ("0", "remote port 0"),
        ("1-2000", "more than 1024"),
    ],
)
def test_mistakes_are_named(text: str, reason: str) -> None:
    with pytest.raises(ForwardError, match=reason):
        parse("tcp", text)


@given(st.text(alphabet="0123456789-:,.[]ax ", max_size=30))
def test_anything_is_understood_or_refused(text: str) -> None:
    try:
        found = parse("udp", text)
    except ForwardError:
        return
    assert all(0 <= forward.local <= 65535 and 0 < forward.remote <= 65535 and forward.host for forward in found)


@given(
    st.sampled_from(["127.0.0.1", "::1", "host.example"]),
    st.integers(0, 60000),
    st.integers(1, 60000),
    st.integers(0, 9),
)
def test_what_is_written_comes_back(host: str, local: int, remote: int, more: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    found = parse("tcp", f"{shown}:{local}-{local + more}:{remote}-{remote + more}")
    assert found == [Forward("tcp", host, local + step, remote + step) for step in range(more + 1)]


class Node:
    """The tailnet, as far as datagrams go."""

    def __init__(self) -> None:
        self.receivers: dict[int, Callable[[Datagram], None]] = {}
        self.sent: list[tuple[int, int, bytes]] = []
        self.opened = 0

    def open_udp(self, receive: Callable[[Datagram], None]) -> int:
        self.opened += 1
        self.receivers[self.opened] = receive
        return self.opened

    def send_datagram(self, local_port: int, address: bytes, port: int, payload: bytes) -> None:
        assert address == ADDRESS
        self.sent.append((local_port, port, payload))

    def close_udp(self, local_port: int) -> None:
        del self.receivers[local_port]


class Transport(asyncio.DatagramTransport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, object]] = []

    def sendto(self, data: object, addr: object = None) -> None:
        assert isinstance(data, bytes)
        self.sent.append((data, addr))

    def close(self) -> None:
        pass


async def test_each_local_sender_gets_its_own_answers_and_is_forgotten_when_idle() -> None:
    node, clock, told = Node(), ManualClock(), list[str]()
    udp = _UdpForward(Forward("udp", "127.0.0.1", 1, 53), node, ADDRESS, clock, told.append)
    transport = Transport()
    udp.connection_made(transport)
    try:
        for sender in (1001, 1002, 1001):
            udp.datagram_received(b"q", ("127.0.0.1", sender))
        assert node.sent == [(1, 53, b"q"), (2, 53, b"q"), (1, 53, b"q")]
        node.receivers[2](Datagram(ADDRESS, 53, b"", 2, b"a"))
        # From another place than was asked: not for this sender.
        node.receivers[2](Datagram(ADDRESS, 54, b"", 2, b"b"))
        assert transport.sent == [(b"a", ("127.0.0.1", 1002))]
        await clock.advance(UDP_IDLE * 0.75)
        udp.datagram_received(b"q", ("127.0.0.1", 1001))
        await clock.advance(UDP_IDLE * 0.75)
        assert set(node.receivers) == {1}
        udp.datagram_received(b"q" * 1233, ("127.0.0.1", 1001))
        udp.datagram_received(b"q" * 1233, ("127.0.0.1", 1001))
        assert len(told) == 1
        assert "more than 1232 bytes" in told[0]
        for sender in range(MAX_FLOWS + 50):
            udp.datagram_received(b"q", ("127.0.0.1", sender))
        assert len(node.receivers) == MAX_FLOWS
    finally:
        udp.close()
        await asyncio.gather(udp.sweeper, return_exceptions=True)
    assert not node.receivers


async def test_closing_ends_dials_that_are_going_on() -> None:
    started = asyncio.Event()

    async def dial(port: int) -> TailnetStream:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    forwarder = PortForwarder(dial, Node(), ADDRESS, ManualClock(), lambda _: None)
    reader, writer = _connection()
    task = asyncio.create_task(forwarder._serve(80, reader, writer))
    forwarder._connections.add(task)
    await started.wait()
    assert forwarder.connections == 1
    await forwarder.aclose()
    assert task.cancelled()
    assert writer.transport.is_closing()


async def test_a_broken_port_is_told_once_until_it_works() -> None:
    told: list[str] = []

    async def dial(port: int) -> TailnetStream:
        raise TailnetError("refused")

    forwarder = PortForwarder(dial, Node(), ADDRESS, ManualClock(), told.append)
    for port in (80, 80, 81, 80):
        await forwarder._serve(port, *_connection())
    assert told == ["port 80 of the agent: refused", "port 81 of the agent: refused"]


class _Pipe(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self._closing = False

    def abort(self) -> None:
        self._closing = True

    close = abort

    def is_closing(self) -> bool:
        return self._closing


def _connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    return reader, asyncio.StreamWriter(_Pipe(), protocol, reader, asyncio.get_running_loop())
