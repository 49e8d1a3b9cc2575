from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.control import HeaderError, parse_headers, run_header_command
from agent.control.headers import COMMAND_LIMIT, parse_command_output
from agent.testing import ManualClock

URL = "https://coder.example.com"


def test_the_first_equals_sign_divides() -> None:
    assert parse_headers(["A=1", "Cookie=a=b; c=d", "Empty="]) == (("A", "1"), ("Cookie", "a=b; c=d"), ("Empty", ""))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("Header", 'item 2 has no "="'),
        ("A=\udcff", "the value of the header A is not UTF-8"),
        ("=1", "no name of a header"),
        ("A B=1", "no name of a header"),
        ("Ä=1", "no name of a header"),
        ("A=1\r\nB: 2", "the value of the header A holds control characters"),
        ("Host=example.com", "the header Host belongs to the connection"),
        ("Sec-WebSocket-Key=x", "the header Sec-WebSocket-Key belongs to the connection"),
    ],
)
def test_a_bad_header_is_named(item: str, message: str) -> None:
    with pytest.raises(HeaderError) as caught:
        parse_headers(["X=1", item])
    assert message in str(caught.value)


@given(st.lists(st.text() | st.text(st.characters(exclude_categories=())).map(lambda text: f"A={text}")))
def test_any_texts_give_sendable_headers_or_the_typed_error(items: list[str]) -> None:
    try:
        headers = parse_headers(items)
    except HeaderError:
        return
    for name, value in headers:
        assert name.isascii()
        assert name.isprintable()
        assert not set(value) & set("\r\n\0")
        assert value.encode().decode() == value


@given(st.from_regex(r"[#$%&*+~0-9]{2,40}", fullmatch=True), st.booleans())
def test_a_value_is_never_shown(secret: str, with_name: bool) -> None:
    with pytest.raises(HeaderError) as caught:
        parse_headers([f"A b={secret}" if with_name else secret])
    assert secret.strip() not in str(caught.value)


@given(st.binary())
def test_any_output_gives_headers_or_the_typed_error(output: bytes) -> None:
    try:
        parse_command_output(output)
    except HeaderError:
        return


@pytest.mark.spec("daemon", 3)
async def test_the_command_sees_the_url_and_may_end_lines_with_crlf() -> None:
    command = "printf 'A=%s\\r\\nB=x=y\\n' \"$CODER_URL\"; echo noise >&2"
    headers = await run_header_command(command, URL, os.environ, SystemClock())
    assert headers == (("A", URL), ("B", "x=y"))


@pytest.mark.spec("daemon", 3)
async def test_a_line_without_equals_sign_fails_the_start() -> None:
    with pytest.raises(HeaderError, match=r'line 2 of the output of CODER_AGENT_HEADER_COMMAND has no "="'):
        await run_header_command("echo A=1; echo word", URL, os.environ, SystemClock())


async def test_a_command_that_prints_nothing_gives_no_headers() -> None:
    assert await run_header_command("true", URL, os.environ, SystemClock()) == ()


async def test_a_command_that_fails() -> None:
    with pytest.raises(HeaderError, match="CODER_AGENT_HEADER_COMMAND failed with exit status 3"):
        await run_header_command("echo A=1; exit 3", URL, os.environ, SystemClock())


async def test_a_command_that_prints_too_much() -> None:
    with pytest.raises(HeaderError, match="printed more than 65536 bytes"):
        await run_header_command("head -c 70000 /dev/zero", URL, os.environ, SystemClock())


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path, clock: ManualClock) -> None:
    os.mkfifo(tmp_path / "pid")
    command = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    task = asyncio.create_task(run_header_command(command, URL, os.environ, clock))
    child = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    while not clock.sleepers:  # the start takes a time that this clock does not show
        await asyncio.sleep(0.001)
    await clock.advance(COMMAND_LIMIT)
    with pytest.raises(HeaderError, match="did not end within 30 s"):
        await task
    assert await asyncio.to_thread(has_ended, child)


async def test_cancelling_kills_the_command(tmp_path: Path, clock: ManualClock) -> None:
    os.mkfifo(tmp_path / "pid")
    task = asyncio.create_task(run_header_command(f"echo $$ > {tmp_path}/pid; sleep 1000", URL, os.environ, clock))
    child = int(await asyncio.to_thread((tmp_path / "pid").read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(has_ended, child)


def has_ended(pid: int) -> bool:
    """Whether the process ends within some seconds; being killed takes a moment."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)
