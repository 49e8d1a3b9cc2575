"""Reassembly: any order, any overlap, and what it costs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.tcp.receiver import MAX_PIECES, Receiver

STREAM = random.Random(7).randbytes(4000)


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 90)), max_size=60),
    st.integers(1, 50),
    st.booleans(),
)
def test_pieces_in_any_order_make_the_stream(pieces: list[tuple[int, int]], step: int, reading: bool) -> None:
    receiver = Receiver(4096)
    got = bytearray()
    have: set[int] = set()
    whole = [(at, step) for at in range(0, 450, step)]
    for at, size in pieces + random.Random(step).sample(whole, len(whole)):
        receiver.receive(1 + at, STREAM[at : at + size])
        have.update(range(at, at + size))
        expected = next(index for index in range(5000) if index not in have)
        assert receiver.nxt == 1 + expected
        for start, end in receiver.blocks():
            assert end > start
            assert have.issuperset(range(start - 1, end - 1))
        if reading:
            got += receiver.read(37)
    while data := receiver.read(1000):
        got += data
    assert bytes(got) == STREAM[: len(got)]
    assert len(got) >= 450
    assert not receiver.gap
    assert receiver._pieces == 0


def test_the_latest_run_is_reported_first() -> None:
    receiver = Receiver(100_000)
    for start in (1001, 3001, 5001, 7001):
        assert not receiver.receive(start, bytes(100))
    receiver.receive(3101, bytes(100))
    assert receiver.blocks() == [(3001, 3201), (7001, 7101), (5001, 5101)]


def test_a_duplicate_is_reported_once() -> None:
    receiver = Receiver(100_000)
    receiver.receive(1, bytes(100))
    receiver.receive(1, bytes(50))
    assert receiver.blocks() == [(1, 51)]
    assert receiver.blocks() == []


def test_what_does_not_fit_is_cut() -> None:
    receiver = Receiver(100)
    receiver.receive(51, bytes(80))
    receiver.receive(1, bytes(50))
    assert receiver.buffered == 100
    assert receiver.window(10) == 0
    receiver.receive(101, b"x")
    assert receiver.buffered == 100


def test_single_bytes_with_gaps_do_not_pile_up() -> None:
    receiver = Receiver(1 << 20)
    for at in range(0, 1 << 16, 2):
        receiver.receive(3 + at, b"x")
    assert len(receiver._ranges) == receiver._pieces == MAX_PIECES
    assert len(receiver._recent) <= 4


def test_single_bytes_in_order_are_joined() -> None:
    receiver = Receiver(1 << 20)
    for at in range(100_000):
        receiver.receive(1 + at, b"x")
    assert len(receiver._chunks) <= 100_000 / 4096 + 1
    assert receiver.read(1 << 20) == b"x" * 100_000


def test_the_window_moves_in_no_silly_steps() -> None:
    receiver = Receiver(10_000)
    receiver.receive(1, bytes(10_000))
    assert receiver.window(1220) == 0
    receiver.read(100)
    assert receiver.window(1220) == 0
    assert not receiver.wants_update(1220)
    receiver.read(2400)
    assert receiver.wants_update(1220)
    assert receiver.window(1220) == 2500


def test_a_peer_may_send_no_more_than_it_is_allowed_however_much_room_there_is() -> None:
    receiver = Receiver(1 << 20)
    receiver.allowed = receiver.edge = 1 + 4000
    assert receiver.window(1208) == 4000
    assert receiver.extend(bytes(3000))
    assert not receiver.extend(bytes(1001))
    assert not receiver.receive(receiver.nxt, bytes(1200)) or receiver.nxt == 4001
    assert receiver.read(1 << 20) == bytes(receiver.nxt - 1)
    assert receiver.window(1208) == 4001 - receiver.nxt, "reading alone allows nothing"
    assert not receiver.wants_update(1208)
    receiver.allowed += 4000
    assert receiver.wants_update(1208)
    assert receiver.window(1208) == 8001 - receiver.nxt
