"""Shells and commands, with a real process each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.support import hosting, until


@pytest.mark.spec("terminal-ssh-http", 24)
async def test_output_errors_and_exit_codes(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        done = await client.run("echo out; echo err >&2; exit 3", encoding=None)
        assert (done.stdout, done.stderr, done.exit_status) == (b"out\n", b"err\n", 3)
        assert (await client.run("kill -9 $$", encoding=None)).exit_status == 255
        assert (await client.run("pwd", encoding=None)).stdout == os.fsencode(tmp_path) + b"\n"
        await until(lambda: len(host.reports.ended) == 3)
        assert [(status, reason) for _, status, reason in host.reports.ended] == [
            (3, "process exited with error status: 3"),
            (255, "process exited with error status: -1"),
            (0, "graceful"),
        ]


@pytest.mark.spec("terminal-ssh-http", 24)
async def test_what_the_agent_cannot_start_is_229(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        host.context.program = "/does/not/exist"
        done = await client.run("true", encoding=None)
        assert done.exit_status == 229
        assert isinstance(done.stderr, bytes)
        assert b"/does/not/exist" in done.stderr
        assert list(host.server.counters.errors.values()) == [1]


@pytest.mark.spec("terminal-ssh-http", 25)
async def test_input_has_an_end_and_a_hundred_megabytes_arrive_whole(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        assert (await client.run("cat | wc -c", input=b"12345", encoding=None)).stdout == b"5\n"
        data = os.urandom(1 << 20) * 20
        done = await client.run("cat", input=data, encoding=None)
        assert done.stdout == data


@pytest.mark.spec("terminal-ssh-http", 26)
async def test_a_terminal_has_size_type_and_modes(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process(
            term_type="vt220", term_size=(100, 30), term_modes={asyncssh.PTY_ECHO: 0}, encoding=None
        )
        process.stdin.write(
            b"stty size; stty -a | tr ';' '\\n' | grep -ow -- -echo; echo $TERM; test -c $SSH_TTY; echo tty=$?\n"
        )
        seen = await _until(process, b"tty=0")
        assert b"30 100" in seen
        assert b"-echo" in seen
        assert b"vt220" in seen
        process.change_terminal_size(80, 24)
        process.stdin.write(b"stty size; exit 7\n")
        assert b"24 80" in await process.stdout.read()
        assert (await process.wait()).exit_status == 7


async def _until(process: asyncssh.SSHClientProcess[bytes], mark: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(10):
        while mark not in seen:
            part = await process.stdout.read(4096)
            assert part, seen
            seen += part
    return seen
