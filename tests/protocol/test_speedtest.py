"""The first lines of a speed test."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.speedtest import (
    MAX_LINE,
    Direction,
    Line,
    Request,
    SpeedtestError,
    answer,
    read_answer,
    read_request,
)


def test_the_recorded_lines() -> None:
    asked = Request(5_000_000_000, Direction.DOWN)
    recorded = "7b2276657273696f6e223a322c2274696d65223a353030303030303030302c22646972656374696f6e223a307d0a"
    assert asked.encode().hex() == recorded
    assert read_request(asked.encode()) == asked
    assert answer().hex() == "7b7d0a"


@pytest.mark.spec("terminal-ssh-http", 48)
def test_another_version_is_told_which_one_is_spoken() -> None:
    for version in (1, 3, 0):
        line = json.dumps({"version": version, "time": 1, "direction": 0}).encode()
        with pytest.raises(SpeedtestError) as caught:
            read_request(line)
        assert str(caught.value) == f"version mismatch! Server is version 2, client is version {version}"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1",
        b"[]",
        b"2",
        b"null",
        b'{"version":2,"time":"5s","direction":0}',
        b'{"version":2,"time":1.5,"direction":0}',
        b'{"version":true,"time":1,"direction":0}',
        b'{"version":2,"time":1,"direction":2}',
        b'{"version":2,"time":99999999999999999999,"direction":1}',
        b"\xff\xfe",
        b"[" * 4000,
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(SpeedtestError):
        read_request(line)


def test_a_refusal_reaches_the_client() -> None:
    read_answer(answer())
    with pytest.raises(SpeedtestError, match="“busy”"):
        read_answer(answer("“busy”"))
    with pytest.raises(SpeedtestError):
        read_answer(b"nonsense")


@given(st.binary(max_size=300), st.binary(max_size=50), st.lists(st.integers(1, 40), max_size=30))
def test_a_line_is_found_whatever_the_pieces_are(first: bytes, rest: bytes, sizes: list[int]) -> None:
    line = first.replace(b"\n", b" ")
    data = line + b"\n" + rest
    reader, at, found = Line(), 0, None
    for size in [*sizes, len(data)]:
        found = reader.receive(data[at : at + size])
        at += size
        if found is not None:
            break
    assert found is not None
    assert found[0] == line
    assert rest.startswith(found[1])


@given(st.integers(1, 1000))
def test_a_line_has_a_bound(size: int) -> None:
    reader = Line()
    for _ in range(MAX_LINE // size):
        assert reader.receive(b"x" * size) is None
    with pytest.raises(SpeedtestError, match="longer"):
        reader.receive(b"x" * size)


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(line: bytes) -> None:
    try:
        assert read_request(line).direction in Direction
    except SpeedtestError as error:
        with pytest.raises(SpeedtestError):
            read_answer(answer(str(error)))
