"""Terminals: what a client says on the PTY port, what a program prints, and the first line of a speed test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

from agent.protocol.pty import MAX_BUFFERED, MAX_INIT, Init, Input, PtyDecoder, PtyProtocolError, Resize, encode_request
from agent.protocol.speedtest import Direction, Line, Request, SpeedtestError, read_answer, read_request
from agent.terminal.tracker import Tracker
from fuzz_parts import Input as Given

INIT = Init(UUID(int=1), 24, 80, "sh -c 'echo <&>'")
STATE = 64 * 1024
"""Bytes that the state of a terminal may have, whatever a program prints."""


def seeds() -> Iterator[bytes]:
    for request in (encode_request("ls\n"), encode_request(rows=5, columns=6), b'{"data":"\\ud83d\\ude00\\u0000"}'):
        yield bytes((0, 7)) + INIT.encode() + request
    yield bytes((1, 9)) + Request(1_000_000_000, Direction.UP).encode() + b"rest"
    yield bytes((1, 3)) + b'{"error": "no"}\n'
    for text in (
        b"\x1b[1;31mred\x1b[0m\x1b[?1049h",
        b"\x1b]0;title\7\x1b]8;;http://a\x1b\\",
        b"\x1b(0\x1b7\x1b8\x1b[2;9r",
    ):
        yield bytes((2, 5)) + text


def target(data: bytes) -> None:
    given = Given(data)
    kind, step = given.number() % 3, given.number() + 1
    rest = given.rest()
    pieces = [rest[at : at + step] for at in range(0, len(rest), step)]
    if kind == 0:
        _client(pieces, len(rest))
    elif kind == 1:
        _speedtest(pieces)
    else:
        _program(pieces)


def _client(pieces: list[bytes], total: int) -> None:
    decoder, first, taken = PtyDecoder(), True, 0
    for piece in pieces:
        try:
            events = decoder.receive(piece)
        except PtyProtocolError:
            return
        for event in events:
            assert isinstance(event, Init) == first
            first = False
            if isinstance(event, Resize):
                assert 0 < event.rows < 65536 > event.columns > 0
            elif isinstance(event, Input):
                taken += len(event.data)
        assert len(decoder._buffer) <= max(MAX_BUFFERED, MAX_INIT + 2)
    assert taken <= 3 * total, "a byte becomes U+FFFD at most"


def _speedtest(pieces: list[bytes]) -> None:
    line = Line()
    with suppress(SpeedtestError):
        for piece in pieces:
            found = line.receive(piece)
            if found is not None:
                with suppress(SpeedtestError):
                    read_answer(found[0])
                read_request(found[0])
                return


def _program(pieces: list[bytes]) -> None:
    tracker, whole = Tracker(), Tracker()
    for piece in pieces:
        tracker.feed(piece)
        assert len(tracker.dump()) <= STATE
        assert len(tracker.restore()) <= STATE
        assert len(tracker.unfinished) <= STATE
    whole.feed(b"".join(pieces))
    assert whole.state == tracker.state, "the pieces in which output comes make no difference"
    assert Tracker.load(tracker.dump()).restore() == tracker.restore()
