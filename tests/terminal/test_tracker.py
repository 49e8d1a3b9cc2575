from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.terminal.tracker import MAX_PENDING, Tracker
from tests.terminal.oracle import NAMES, ROWS, Emulator, drawn_again, recording


def after(*outputs: bytes) -> Tracker:
    tracker = Tracker()
    for output in outputs:
        tracker.feed(output)
    return tracker


def restored(output: bytes) -> bytes:
    tracker = after(output)
    return tracker.restore() + tracker.unfinished


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_right_at_every_byte_of_real_programs(name: str) -> None:
    output = recording(name)
    whole, tracker = Emulator(), Tracker()
    for at in range(len(output)):
        whole.feed(output[at : at + 1])
        tracker.feed(output[at : at + 1])
        assert Emulator(tracker.restore(ROWS), tracker.unfinished).state() == whole.state(), at


@pytest.mark.parametrize("name", NAMES)
def test_what_was_cut_off_and_restored_looks_as_if_it_had_not_been(name: str) -> None:
    """After the program was nudged, or what a shell printed has filled the screen."""
    output = recording(name)
    last = drawn_again(name) if name not in ("shell", "emoji", "truecolor") else output * 4
    picture = Emulator(output, last).picture()
    for cut in range(0, len(output), max(len(output) // 60, 1) | 1):
        tracker = after(output[:cut])
        assert Emulator(tracker.restore(ROWS), tracker.unfinished, output[cut:], last).picture() == picture, cut


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"plain", b""),
        (b"\x1b[?1049h", b"\x1b[?1049h"),
        (b"\x1b[?1049h\x1b[?1049l", b""),
        (b"\x1b[?2004;1000;1006h", b"\x1b[?2004h\x1b[?1000h\x1b[?1006h"),
        (b"\x1b[?25l", b"\x1b[?25l"),
        (b"\x1b[?25l\x1b[?25h\x1b[?7h", b""),
        (b"\x1b[?2026h\x1b[?3h\x1b[?31337h", b""),
        (b"\x1b[4h", b"\x1b[4h"),
        (b"\x1b[4h\x1b[4l", b""),
        (b"\x1b=", b"\x1b="),
        (b"\x1b=\x1b>", b""),
        (b"\x1b[?66h", b"\x1b="),
        (b"\x1b[4 q", b"\x1b[4 q"),
        (b"\x1b[4 q\x1b[0 q", b""),
        (b"\x1b[>4;2m", b"\x1b[>4;2m"),
        (b"\x1b[>4;2m\x1b[>4m", b""),
        (b"\x1b[2;20r", b"\x1b[2;20r"),
        (b"\x1b[2;20r\x1b[r", b""),
        (b"\x1b]0;title\x07", b"\x1b]2;title\x07"),
        (b"\x1b]2;title\x1b\\", b"\x1b]2;title\x07"),
        (b"\x1b]2;" + b"x" * 600 + b"\x07", b""),
        (b"\x1b(0\x0e\x1b)A", b"\x1b(0\x1b)A\x0e"),
        (b"\x1b(0\x1b(B\x0e\x0f", b""),
        (b"\x1bn", b"\x1bn"),
        (b"\x1b[1;31m\x1b[22m", b"\x1b[0;31m"),
        (b"\x1b[31m\x1b[32m\x1b[31m", b"\x1b[0;31m"),
        (b"\x1b[31m\x1b[0m", b""),
        (b"\x1b[38;2;1;2;3;1m", b"\x1b[0;38;2;1;2;3;1m"),
        (b"\x1b[38:2::1:2:3m", b"\x1b[0;38:2::1:2:3m"),
        (b"\x1b[48;5;200m", b"\x1b[0;48;5;200m"),
        (b"\x1b[4:3m", b"\x1b[0;4:3m"),
        (b"\x1b[4:3m\x1b[4:0m", b""),
        (b"\x1b[91;103m", b"\x1b[0;91;103m"),
        (b"\x1b[?6h", b"\x1b[?6h"),
        (b"\x1b[31m\x1b7\x1b[32m", b"\x1b[0;31m\x1b7\x1b[m\x1b(B\x1b)B\x0f\x1b[?6l\x1b[0;32m"),
        (b"\x1b[31m\x1b7\x1b[32m\x1b8", b"\x1b[0;31m\x1b7\x1b[m\x1b(B\x1b)B\x0f\x1b[?6l\x1b[0;31m"),
        (b"\x1b[?2004h\x1b[31m\x1b]2;t\x07\x1bc", b""),
        (b"\x1b[?1h\x1b[4h\x1b[1m\x1b[!p", b""),
        (b"\x1bPq\x0e\x1b(0garbage\x1b\\", b"\x1b(0"),  # the ESC within ends the string
        (b"\x1bPsome \x07\x0e\x1b\\", b""),
        (b"\x1b]8;;http://x\x0e\x07", b""),
    ],
)
def test_what_is_restored(output: bytes, expected: bytes) -> None:
    assert restored(output) == expected


@pytest.mark.parametrize(
    "start", [b"\x1b", b"\x1b[", b"\x1b[38;2", b"\x1b[?20", b"\x1b(", b"\x1b]2;ti", b"\x1bPq", b"\x1b]2;t\x1b"]
)
def test_an_unfinished_sequence_is_kept(start: bytes) -> None:
    assert after(b"text" + start).unfinished == start


@pytest.mark.parametrize("character", ["é", "漢", "😀"])
def test_an_unfinished_character_is_kept(character: str) -> None:
    encoded = character.encode()
    for count in range(1, len(encoded)):
        assert after(b"text" + encoded[:count]).unfinished == encoded[:count]
    assert after(b"text" + encoded).unfinished == b""


@pytest.mark.parametrize("end", [b"\x07", b"\x1b\\", b"\x18"])
def test_the_rest_of_a_long_control_string_is_not_shown(end: bytes) -> None:
    begin = b"\x1b]52;c;" + b"A" * (MAX_PENDING + 10)
    tracker = after(begin, b"AAAA", b"AA")
    assert tracker.restore() + tracker.unfinished == b"\x1b]9999;"
    tracker.feed(end[:1])
    tracker.feed(end[1:])
    tracker.feed(b"\x1b[1m")
    assert tracker.restore() + tracker.unfinished == b"\x1b[0;1m"


def test_margins_that_do_not_fit_are_left_out() -> None:
    tracker = after(b"\x1b[1;40r")
    assert tracker.restore(50) == b"\x1b[1;40r"
    assert tracker.restore(24) == b""


PIECES = st.sampled_from(
    rb"\x1b [ ] ? m h l ; 1 38;2;1;2;3 1049 \x07 \\ P \x0e \x18 \x1b[0m \x1b[?25l \x1b7 \x1b8 \x1b(0 \x1b]2;t text"
    rb" \x1b[1;5r \x1bc \xe6\xbc\xa2 \xe6 \xbc".decode("unicode_escape")
    .encode("latin-1")
    .split(b" ")
)
OUTPUT = st.one_of(st.lists(PIECES, max_size=40).map(b"".join), st.binary(max_size=60))


@given(OUTPUT, st.data())
def test_pieces_do_not_matter(output: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=6)))
    pieces = [output[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    assert after(*pieces).dump() == after(output).dump()


@given(OUTPUT)
def test_what_is_restored_brings_a_tracker_to_the_same_state(output: bytes) -> None:
    tracker = after(output)
    again = after(tracker.restore() + tracker.unfinished)
    assert again.restore() + again.unfinished == tracker.restore() + tracker.unfinished


@given(OUTPUT)
def test_a_state_survives_being_written_down(output: bytes) -> None:
    tracker = after(output)
    assert Tracker.load(tracker.dump()).dump() == tracker.dump()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        Tracker.load(data)


def test_the_state_is_bounded() -> None:
    tracker = after(*(b"\x1b[%d;38;5;%dm\x1b[?%dh\x1b(%c" % (n % 60, n, n, 48 + n % 70) for n in range(3000)))
    tracker.feed(b"\x1b7\x1b]2;" + b"t" * 500 + b"\x07\x1b[" + b"1;" * 10000)
    assert len(tracker.dump()) < 8000
