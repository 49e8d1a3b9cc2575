from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.terminal.replay import without_effects
from agent.terminal.ring import Ring, RingError
from tests.terminal.oracle import NAMES, Emulator, drawn_again, recording


@contextmanager
def make(size: int) -> Iterator[Ring]:
    fd = Ring.allocate(size)
    ring = Ring(fd)
    try:
        yield ring
    finally:
        ring.close()
        os.close(fd)


@pytest.mark.spec("terminal-ssh-http", 6)
@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(1, 100))
def test_the_last_bytes_are_kept_at_their_offsets(pieces: list[bytes], size: int) -> None:
    everything = b""
    with make(size) as ring:
        for piece in pieces:
            ring.append(piece)
            everything += piece
            assert ring.head == len(everything)
            assert min(size, ring.head) <= ring.head - ring.tail <= 2 * size
            kept = b""
            while len(kept) < ring.head - ring.tail:
                kept += ring.read(ring.tail + len(kept), 7)
            assert kept == everything[ring.tail :]
        ring.trim()
        assert ring.head - ring.tail == min(size, ring.head)


def test_a_replay_is_the_state_and_what_is_kept() -> None:
    with make(16) as ring:
        ring.append(b"\x1b[1mbold" + b"." * 8)
        assert ring.replay().data == b"\x1b[1mbold........"
        ring.append(b"0123456789")
        assert ring.replay().data == b"\x1b[0;1m" + b"......0123456789"


def test_a_replay_begins_with_whole_sequences_and_characters() -> None:
    with make(4) as ring:
        ring.append(b"\x1b[31mabc")
        assert ring.replay().data == b"\x1b[31mabc"
        ring.append("é!".encode())
        assert ring.replay().data == b"\x1b[0;31mc" + "é!".encode()
        ring.append("漢字".encode())
        assert ring.replay().data == b"\x1b[0;31m" + "漢字".encode()


def test_a_full_screen_program_is_noticed_wherever_it_began() -> None:
    with make(8) as ring:
        assert not ring.replay().full_screen
        ring.append(b"\x1b[?1049h")
        assert ring.replay().full_screen
        ring.append(b"." * 100)
        assert ring.replay() == (b"\x1b[?1049h........", True)
        ring.append(b"\x1b[?1049l")
        assert not ring.replay().full_screen


@pytest.mark.parametrize("name", NAMES)
def test_real_programs_look_the_same_out_of_a_small_ring(name: str) -> None:
    output = recording(name)
    last = drawn_again(name) if name not in ("shell", "emoji", "truecolor") else output * 4
    for size in (300, 1000, 3001):
        with make(size) as ring:
            for at in range(0, len(output), 457):
                ring.append(output[at : at + 457])
            assert Emulator(ring.replay(24).data, last).picture() == Emulator(output, last).picture()


def test_another_process_goes_on_with_a_ring() -> None:
    fd = Ring.allocate(100)
    first = Ring(fd)
    first.append(b"\x1b[7m" + b"x" * 250)
    expected = first.replay()
    first.append(b"more")
    first.close()
    second = Ring(fd, adopt=True)
    assert (second.head, second.replay().data) == (258, expected.data[:-4] + b"more")
    second.close()
    os.close(fd)


@pytest.mark.parametrize("at", [0, 8, 16, 64, 72, 80])
def test_a_damaged_ring_is_an_error_or_usable(at: int) -> None:
    fd = Ring.allocate(100)
    ring = Ring(fd)
    for _ in range(5):
        ring.append(b"\x1b[7m" + b"x" * 90)
    ring.close()
    os.pwrite(fd, b"\xff\xff\xff", at)
    with contextlib.suppress(RingError):
        Ring(fd, adopt=True).replay()
    os.close(fd)


def test_memory_that_is_no_ring_is_an_error() -> None:
    fd = os.memfd_create("test")
    with pytest.raises(RingError, match="too small"):
        Ring(fd)
    os.ftruncate(fd, 100_000)
    with pytest.raises(RingError, match="no terminal"):
        Ring(fd, adopt=True)
    os.close(fd)


@pytest.mark.parametrize(
    "effect",
    [
        b"\x1b[c", b"\x1b[>c", b"\x1b[>0c", b"\x1b[=c", b"\x1b[5n", b"\x1b[6n", b"\x1b[?6n", b"\x1b[?2026$p",
        b"\x1b[>0q", b"\x1b[?u", b"\x1b[18t", b"\x1b[?4m", b"\x1bZ", b"\x1bP+q544e\x1b\\", b"\x1bP$qm\x1b\\",
        b"\x1b]10;?\x07", b"\x1b]11;?\x1b\\", b"\x1b]4;7;?\x07",
        b"\x1b]52;c;QQ==\x07", b"\x1b]9;done\x07", b"\x07", b"\x05", b"\x1b[x",
    ],
)  # fmt: skip
def test_what_has_had_its_effect_is_not_replayed(effect: bytes) -> None:
    assert without_effects(b"before" + effect + b"after") == b"beforeafter"


@pytest.mark.parametrize(
    "drawing",
    [
        b"plain", b"\x1b]0;title\x07", b"\x1b]2;t\x1b\\", b"\x1b]8;;http://example.com/?a=1\x07", b"\x1b[1m\x1b[?25l",
        b"\x1b[22;0;0t", b"\x1b]4;7;rgb:0/0/0\x07", b"\x1b]11;rgb:0/0/0\x07", b"\x1b[4 q", b"\x1b[!p", b"\x1b[2;5r",
        b"\x1bPq#0;2;0;0;0\x07\x1b\\", b"\x1b[6", b"\x1b]9;unfinished",
    ],
)  # fmt: skip
def test_what_draws_is_replayed(drawing: bytes) -> None:
    assert without_effects(b"before" + drawing) == b"before" + drawing


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_seen_is_left_out(name: str) -> None:
    assert Emulator(without_effects(recording(name))).picture() == Emulator(recording(name)).picture()
