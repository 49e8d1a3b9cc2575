"""`ssh`, `cp` and `config-ssh`, with the real server, the real agent, and OpenSSH's programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.test_cli_network import World, deployed

LIMIT = 60.0
needs_openssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")


class Cli:
    """Programs of somebody who is logged in at the server, with a home of their own."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.home = home

    async def start(self, *arguments: str | Path, path: str = "") -> asyncio.subprocess.Process:
        environment = {**os.environ, "CODER_URL": self.world.running.url, "HOME": str(self.home)}
        environment["CODER_SESSION_TOKEN"] = self.world.running.token
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *map(str, arguments),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=self.home,
            env=environment | ({"PATH": path} if path else {}),
        )

    async def run(
        self, *arguments: str | Path, given: bytes = b"", code: int = 0, path: str = ""
    ) -> tuple[bytes, bytes]:
        """What it printed."""
        process = await self.start(*arguments, path=path)
        async with asyncio.timeout(LIMIT):
            out, err = await process.communicate(given)
        assert process.returncode == code, (out, err)
        return out, err

    async def command(
        self, *arguments: str | Path, given: bytes = b"", code: int = 0, path: str = ""
    ) -> tuple[bytes, bytes]:
        return await self.run(sys.executable, "-m", "agent", *arguments, given=given, code=code, path=path)


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Cli]:
    home = tmp_path / "home"
    home.mkdir()
    async with deployed(tmp_path) as world:
        yield Cli(world, home)


@needs_openssh
async def test_commands_shells_and_files(cli: Cli, tmp_path: Path) -> None:
    assert await cli.command("ssh", "dev", "echo out; echo err >&2; exit 3", code=3) == (b"out\n", b"err\n")
    data = os.urandom(3_000_000)
    assert (await cli.command("ssh", cli.world.created.id, "cat", given=data))[0] == data
    (cli.home / "file").write_bytes(data)
    there = tmp_path / "there"
    await cli.command("cp", "-q", "file", f"dev:{there}")
    assert there.read_bytes() == data
    await cli.command("cp", "-q", "-r", f"dev:{there}", "back")
    assert (cli.home / "back").read_bytes() == data


@needs_openssh
async def test_a_configured_host(cli: Cli) -> None:
    config = cli.home / "config"
    config.write_text("Host other\n    User me\n")
    config.chmod(0o640)
    arguments = ("config-ssh", "--ssh-config-file", config)
    _, err = await cli.command(*arguments, code=1)
    assert b"say --yes" in err
    out, _ = await cli.command(*arguments, "--dry-run")
    assert b"+Host *.agent" in out
    assert config.read_text() == "Host other\n    User me\n"
    await cli.command(*arguments, "--yes")
    assert config.stat().st_mode & 0o777 == 0o640
    assert b"needs no change" in (await cli.command(*arguments))[0]
    ssh = ("ssh", "-F", config)
    assert await cli.run(*ssh, "DEV.agent", "echo here; exit 7", code=7) == (b"here\n", b"")
    _, err = await cli.run(*ssh, "none.agent", "true", code=255)
    assert b'There is no agent "none"' in err
    await cli.command(*arguments, "--yes", "--remove")
    assert config.read_text() == "Host other\n    User me\n"


async def test_standard_streams_are_the_connection(cli: Cli) -> None:
    # What is said before the end of the input arrives; the server's end then ends the command.
    process = await cli.start(sys.executable, "-m", "agent", "ssh", "--stdio", "dev")
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT):
        assert (await process.stdout.readline()).startswith(b"SSH-2.0-")
        process.stdin.write_eof()
        await process.stdout.read()
        assert await process.wait() == 0
    for number in (signal.SIGHUP, signal.SIGTERM):
        process = await cli.start(sys.executable, "-m", "agent", "ssh", "--stdio", "dev")
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT):
            assert (await process.stdout.readline()).startswith(b"SSH-2.0-")
            process.send_signal(number)
            assert await process.wait() == 0


async def test_a_machine_without_openssh(cli: Cli) -> None:
    nowhere = "/nonexistent"
    data = os.urandom(1_000_000)
    out, err = await cli.command("ssh", "dev", "cat; echo err >&2; exit 3", given=data, code=3, path=nowhere)
    assert out == data
    assert err == b"err\n"
    _, err = await cli.command("ssh", "-L", "1:localhost:2", "dev", code=1, path=nowhere)
    assert b"need OpenSSH" in err
    _, err = await cli.command("cp", "dev:a", "b", code=1, path=nowhere)
    assert b"needs OpenSSH's scp" in err
    _, err = await cli.command("ssh", "none", code=255, path=nowhere)
    assert b'There is no agent "none"' in err
