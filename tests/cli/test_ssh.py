"""Names, our section of the ssh configuration, and standard streams that are a connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import config_ssh, cp, openssh, ssh, stdio
from agent.cli.errors import CliError
from agent.cli.main import main
from agent.protocol.tcp import ConnectionResetTcpError
from agent.testing.streams import stream_pair

LIMIT = 10.0


@pytest.mark.parametrize(
    ("host", "agent"),
    [("dev.agent", "dev"), ("Dev.AGENT", "Dev"), ("dev", "dev"), ("dev.agent.agent", "dev.agent"), ("agent", "agent")],
)
def test_a_suffix_comes_off(host: str, agent: str) -> None:
    assert ssh.without_suffix(host, "agent") == agent
    assert ssh.without_suffix(host, "") == host


@pytest.mark.parametrize("name", ["", "-oProxyCommand=x", "a b", "$(id)", "a/b", "a.b", "dév", "a\n"])
def test_what_is_no_name_becomes_no_word_of_a_command(name: str) -> None:
    with pytest.raises(CliError, match="no name or id"):
        openssh.check_name(name)


@pytest.mark.parametrize(
    ("path", "agent"), [("dev:x", "dev"), ("dev:", "dev"), ("x", None), ("./a:b", None), ("/a:b", None), (":x", "")]
)
def test_whose_file_it_is(path: str, agent: str | None) -> None:
    assert cp.agent_of(path) == agent


# The section of the configuration

MARKS = (config_ssh.BEGIN, config_ssh.END)
others = st.text(st.characters(codec="utf-8"), max_size=200).filter(
    lambda text: not any(mark in text for mark in MARKS)
)


@given(others, others)
def test_what_is_not_ours_stays(before: str, after: str) -> None:
    section = config_ssh.section("agent")
    written = config_ssh.changed(before, section)
    assert written.startswith(before)
    assert config_ssh.changed(written, section) == written
    removed = config_ssh.changed(written, "")
    assert removed.removeprefix(before).strip("\n") == ""
    assert config_ssh.changed(removed, "") == removed
    # In the middle: it keeps its place, and its neighbours.
    middle = f"{before}\n{section}{after}"
    other = config_ssh.section("other")
    assert config_ssh.changed(middle, other) == f"{before}\n{other}{after}"


@pytest.mark.parametrize(
    "text", [MARKS[0], MARKS[1], "\n".join(MARKS[::-1]), "\n".join(MARKS * 2), "\n".join((MARKS[0], *MARKS))]
)
def test_damaged_marks_are_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="remove what is left"):
        config_ssh.changed(text, config_ssh.section("agent"))


def configure(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["config-ssh", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_file_is_made_and_a_link_stays_one(tmp_path: Path) -> None:
    file = tmp_path / "ssh" / "config"
    configure("--yes", "--ssh-config-file", file)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link"
    link.symlink_to(file)
    configure("--yes", "--suffix", "ws.example", "--ssh-config-file", link)
    assert link.is_symlink()
    assert "Host *.ws.example\n" in file.read_text()
    assert list(file.parent.iterdir()) == [file]
    raw = b"# \xff\r\n" + file.read_bytes()
    file.write_bytes(raw)
    assert "needs no change" in configure("--yes", "--suffix", "ws.example", "--ssh-config-file", file)
    configure("--yes", "--remove", "--ssh-config-file", file)
    assert file.read_bytes() == b"# \xff\r\n"


def test_what_keeps_the_file_from_being_written(tmp_path: Path) -> None:
    assert "is a directory" in configure("--yes", "--ssh-config-file", tmp_path, code=2)
    (tmp_path / "file").write_text("")
    assert "cannot read" in configure("--yes", "--ssh-config-file", tmp_path / "file" / "config", code=1)
    assert "cannot end a host name" in configure("--suffix", "a b", code=2)
    damaged = tmp_path / "damaged"
    damaged.write_text(config_ssh.BEGIN)
    assert "remove what is left" in configure("--yes", "--ssh-config-file", damaged, code=1)


# Standard streams


@pytest.fixture
async def pipes() -> AsyncIterator[tuple[int, int, int, int]]:
    """Standard input, where a test writes it, where a test reads standard output, and that."""
    source, given_ = os.pipe()
    seen, sink = os.pipe()
    os.set_blocking(seen, False)
    descriptors = [source, given_, seen, sink]
    yield source, given_, seen, sink
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


async def test_both_ways_and_an_end_of_input(pipes: tuple[int, int, int, int]) -> None:
    source, given_, seen, sink = pipes
    ours, theirs = stream_pair()
    joined = asyncio.create_task(stdio.join(ours, source, sink))
    os.set_blocking(given_, False)
    os.write(given_, b"question")
    async with asyncio.timeout(LIMIT):
        assert await theirs.read() == b"question"
        os.close(given_)
        assert await theirs.read() == b""  # half closed: what comes back still arrives
        data = os.urandom(300_000)
        sending = asyncio.create_task(theirs.write(data))
        found = b""
        while len(found) < len(data):
            try:
                found += os.read(seen, 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        await sending
        theirs.close()
        await joined
    assert found == data
    assert os.get_blocking(source)
    assert os.get_blocking(sink)


async def test_the_agents_end_is_the_end_though_input_could_come(pipes: tuple[int, int, int, int]) -> None:
    source, _, seen, sink = pipes
    ours, theirs = stream_pair()
    joined = asyncio.create_task(stdio.join(ours, source, sink))
    async with asyncio.timeout(LIMIT):
        await theirs.write(b"last")
        theirs.close()
        await joined
    assert os.read(seen, 10) == b"last"


async def test_breaks_are_told_to_both_sides(pipes: tuple[int, int, int, int]) -> None:
    source, _, seen, sink = pipes
    ours, theirs = stream_pair()
    joined = asyncio.create_task(stdio.join(ours, source, sink))
    theirs.abort()
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ConnectionResetTcpError):
            await joined
    ours, theirs = stream_pair()
    os.close(seen)
    joined = asyncio.create_task(stdio.join(ours, source, sink))
    async with asyncio.timeout(LIMIT):
        await theirs.write(b"for nobody")
        with pytest.raises(stdio.OutputGoneError, match="Broken pipe"):
            await joined
        with pytest.raises(ConnectionResetTcpError):
            await theirs.read()


async def test_a_cancelled_join_resets_and_leaves_everything_as_it_was(pipes: tuple[int, int, int, int]) -> None:
    source, _, _, sink = pipes
    ours, theirs = stream_pair()
    joined = asyncio.create_task(stdio.join(ours, source, sink))
    await asyncio.sleep(0)
    joined.cancel()
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncio.CancelledError):
            await joined
        with pytest.raises(ConnectionResetTcpError):
            await theirs.read()
    assert os.get_blocking(source)
    assert os.get_blocking(sink)


async def test_one_socket_for_both() -> None:
    """Some programs give their ProxyCommand a socket."""
    inner, outer = socket.socketpair()
    outer.setblocking(False)
    loop = asyncio.get_running_loop()
    with inner, outer:
        ours, theirs = stream_pair()
        joined = asyncio.create_task(stdio.join(ours, inner.fileno(), inner.fileno()))
        async with asyncio.timeout(LIMIT):
            await loop.sock_sendall(outer, b"there")
            assert await theirs.read() == b"there"
            await theirs.write(b"back")
            assert await loop.sock_recv(outer, 10) == b"back"
            theirs.close()
            await joined
        assert inner.getblocking()
