"""What can be said about dialling without a network (tailnet.md §5.1)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tailnet.derp_client import reconnect_delay
from agent.tailnet.derp_dial import MAX_BODY, MAX_HEAD, DialError, Stream, _unchunked, authority, check_certificate, url
from agent.tailnet.derp_map import Node


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def stream(*chunks: bytes, ended: bool = False) -> Stream:
    made = Stream()
    made.connection_made(Transport())
    for chunk in chunks:
        made.data_received(chunk)
    if ended:
        made.connection_lost(None)
    return made


@pytest.mark.spec("tailnet", 31)
def test_delays_grow_with_the_square_of_failures() -> None:
    middle = [reconnect_delay(n, lambda low, high: (low + high) / 2) for n in range(1, 31)]
    assert middle[:4] == pytest.approx([0.01, 0.04, 0.09, 0.16])
    assert middle[-1] == 5.0
    assert reconnect_delay(100, lambda low, high: high) == 7.5
    assert reconnect_delay(1, lambda low, high: low) == 0.005


@pytest.mark.spec("tailnet", 30)
@pytest.mark.parametrize(
    ("node", "host", "address"),
    [
        (Node("n", 1, "relay.example.com"), "relay.example.com", "https://relay.example.com/derp"),
        (Node("n", 1, "relay.example.com", derp_port=8443), "relay.example.com:8443", None),
        (
            Node("n", 1, "relay.example.com", force_http=True),
            "relay.example.com:443",
            "http://relay.example.com:443/derp",
        ),
        (Node("n", 1, "relay.example.com", force_http=True, derp_port=80), "relay.example.com", None),
        (Node("n", 1, "relay.example.com", ipv4="192.0.2.1"), "192.0.2.1", "https://relay.example.com/derp"),
        (Node("n", 1, "relay.example.com", ipv4="none"), "relay.example.com", None),
        (Node("n", 1, "::1", derp_port=7080), "[::1]:7080", "https://[::1]:7080/derp"),
    ],
)
def test_what_the_relay_is_called(node: Node, host: str, address: str | None) -> None:
    assert authority(node) == host
    assert address is None or str(url(node)) == address


async def test_bytes_behind_the_head_belong_to_derp() -> None:
    made = stream(b"HTTP/1.1 101 Switch", b"ing Protocols\r\nUpgrade: DERP\r\nDerp-Version:2\r\n\r", b"\n\x01\x02")
    assert await made.head() == (101, {"upgrade": "DERP", "derp-version": "2"})
    received: list[bytes] = []
    made.attach(received.append, lambda: None)
    made.data_received(b"\x03")
    assert received == [b"\x01\x02", b"\x03"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP: 'SSH-2.0-OpenSSH'"),
        (b"HTTP/2 200\r\n\r\n", "no HTTP"),
        (b"x" * (MAX_HEAD + 1), "a head of more than 16384 bytes"),
        (b"HTTP/1.1 101 ", "ended early"),
    ],
)
async def test_answers_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(DialError, match=message):
        await stream(data, ended=True).head()


def test_a_head_without_an_end_does_not_fill_the_memory() -> None:
    made = stream(b"x" * MAX_HEAD, b"x")
    transport: Any = made.transport
    assert not transport.reading


@pytest.mark.parametrize(
    ("head", "data", "ended", "body"),
    [
        ("Content-Length: 5", b"hello", False, b"hello"),
        ("Content-Length: 0", b"", False, b""),
        ("Content-Length: 5", b"hel", True, b"hel"),
        ("Connection: close", b"until the end", True, b"until the end"),
        ("Content-Length: 1000000", bytes(MAX_BODY + 9), False, bytes(MAX_BODY)),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", False, b"abcde"),
        ("Transfer-Encoding: chunked", b"0\r\n\r\n", False, b""),
        ("Transfer-Encoding: chunked", b"zz\r\n", True, b""),
    ],
)
async def test_bodies_of_refusals(head: str, data: bytes, ended: bool, body: bytes) -> None:
    made = stream(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n\r\n".encode() + data, ended=ended)
    status, headers = await made.head()
    assert (status, await made.body(headers)) == (400, body)


@given(st.binary(max_size=200))
async def test_any_answer(data: bytes) -> None:
    made = stream(data, ended=True)
    try:
        _, headers = await made.head()
    except DialError:
        return
    assert len(await made.body(headers)) <= MAX_BODY


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5))
def test_chunks(chunks: list[bytes]) -> None:
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    assert _unchunked(wire) == b"".join(chunks)


@pytest.mark.spec("tailnet", 30)
def test_the_name_in_a_certificate() -> None:
    certificate = {"subjectAltName": (("DNS", "relay.example.com"), ("DNS", "*.example.org"), ("email", "x@y"))}
    for name in ("relay.example.com", "Relay.Example.Com", "a.example.org"):
        check_certificate(Node("n", 1, "elsewhere", cert_name=name), certificate)
    for name in ("example.org", "a.b.example.org", "x@y", "elsewhere"):
        with pytest.raises(DialError, match=f"is for relay.example.com, .* not for {name}"):
            check_certificate(Node("n", 1, "elsewhere", cert_name=name), certificate)
    check_certificate(Node("n", 1, "elsewhere"), certificate)
    check_certificate(Node("n", 1, "elsewhere", cert_name="x", insecure_for_tests=True), {})
