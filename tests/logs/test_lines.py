"""Bytes to lines, and what is done to them: agent-api.md §10.3, daemon.md §4.8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs.lines import LineSplitter, lines_of
from agent.logs.records import MAX_LINE
from agent.logs.sanitise import sanitise
from tests.logs.chunks import chunked, chunkings

_OUTPUT = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\0", b"\xff", b"\xe2", b"\x9d", b"\x8c", b"word"])).map(
    b"".join
)


@pytest.mark.spec("agent-api", 33)
@pytest.mark.spec("daemon", 29)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"test\x00\xc3\x28", "test❌❌("),
        (b"a\x00\xc3(", "a❌❌("),
        (b"\xff\xfeb", "❌b"),
        (b"\xed\xa0\x80", "❌"),
        (b"\0\0", "❌❌"),
        (b"\xff\0\xff", "❌❌❌"),
        ("\ufffd ü".encode(), "\ufffd ü"),
        (b"\xe2\x9d", "❌"),
    ],
)
def test_invalid_utf8_and_nul_are_marked(data: bytes, text: str) -> None:
    assert sanitise(data) == text.encode()


@given(st.binary())
def test_sanitised_bytes_are_valid_and_nothing_else_changes(data: bytes) -> None:
    clean = sanitise(data)
    assert b"\0" not in clean
    assert clean.decode().replace("❌", "") == data.decode(errors="ignore").replace("\0", "").replace("❌", "")
    assert sanitise(clean) == clean


@pytest.mark.spec("daemon", 29)
def test_lines_end_at_newlines_with_one_carriage_return() -> None:
    splitter = LineSplitter(MAX_LINE)
    assert splitter.feed(b"a\r\nb\n\nc") == [b"a", b"b", b""]
    assert splitter.flush() == [b"c"]
    assert splitter.feed(b"x\r") == []
    assert splitter.feed(b"\ny\r\r\nz\rz\n") == [b"x", b"y\r", b"z\rz"]
    assert splitter.flush() == []


@pytest.mark.spec("daemon", 29)
def test_a_line_of_two_mib_is_left_out_and_not_kept_in_memory() -> None:
    splitter = LineSplitter(MAX_LINE)
    assert splitter.feed(b"before\n" + b"x" * 65_536) == [b"before"]
    for _ in range(31):
        assert splitter.feed(b"x" * 65_536) == []
        assert splitter.partial <= MAX_LINE + 1
    assert splitter.skipping
    assert splitter.feed(b"x\nafter\n") == [b"after"]
    assert splitter.dropped == 1
    assert not splitter.skipping


@given(_OUTPUT, chunkings(), st.integers(1, 12))
def test_any_chunking_gives_the_same_lines(output: bytes, cuts: list[int], limit: int) -> None:
    raw = output.replace(b"\r\n", b"\n").split(b"\n")
    if raw[-1] == b"":
        raw.pop()
    splitter = LineSplitter(limit)
    lines = [line for chunk in chunked(output, cuts) for line in splitter.feed(chunk)] + splitter.flush()
    assert len(lines) + splitter.dropped == len(raw)
    # A line that is too long and would shrink by sanitising is judged as it stands when it is skipped, so it may go
    # either way; every other line is decided by its sanitised length.
    remaining = iter(lines)
    upcoming = next(remaining, None)
    for line in raw:
        clean = sanitise(line)
        if len(clean) <= limit and (len(line) <= limit or clean == upcoming):
            assert clean == upcoming
            upcoming = next(remaining, None)
    assert upcoming is None


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=5)), chunkings())
def test_clean_lines_come_out_as_they_went_in(lines: list[str], cuts: list[int]) -> None:
    output = "".join(line + "\n" for line in lines).encode()
    splitter = LineSplitter(MAX_LINE)
    assert [x for chunk in chunked(output, cuts) for x in splitter.feed(chunk)] == [line.encode() for line in lines]
    assert splitter.partial == 0


def test_notes_are_lines_too() -> None:
    assert lines_of("one\ntwo\0" + "\udcff", 100) == [b"one", "two❌?".encode()]
    assert lines_of("long line\nshort", 5) == [b"short"]
