"""What OpenSSH carries into the workspace and out of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import MSG_REQUEST_SUCCESS

from agent.ssh.counters import Kind
from agent.ssh.options import Options
from agent.ssh.x11 import BASE_PORT, FIRST_DISPLAY, LAST_DISPLAY, Display, X11Request, parse_authority
from tests.e2e.ssh_client import Clients, clients, free_port
from tests.ssh.support import until

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers everything in capitals, once the other side has said everything."""
    data = await reader.read()
    writer.write(data.upper())
    writer.write_eof()
    await writer.drain()
    writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes = b"x" * 300_000) -> None:
    async with asyncio.timeout(10):
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == text.upper()
        writer.close()


@asynccontextmanager
async def _forwarding(c: Clients, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """ssh with these arguments and a command that says when everything is set up."""
    process = await c.start("ssh", "-o", "ExitOnForwardFailure=yes", *arguments, "agent", "echo ready; cat")
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(10):
            line = await process.stdout.readline()
        assert line == b"ready\n", await process.stderr.read()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.spec("terminal-ssh-http", 32)
async def test_local_and_dynamic(tmp_path: Path) -> None:
    server = await asyncio.start_server(_shout, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(_shout, tmp_path / "service")
    port = server.sockets[0].getsockname()[1]
    async with server, unix, clients(tmp_path) as c:
        here, socks = free_port(), free_port()
        arguments = ("-L", f"{here}:localhost:{port}", "-L", f"{tmp_path}/l:{tmp_path}/service", "-D", str(socks))
        async with _forwarding(c, *arguments):
            await _ask(*await asyncio.open_connection("127.0.0.1", here))
            await _ask(*await asyncio.open_unix_connection(tmp_path / "l"))
            reader, writer = await asyncio.open_connection("127.0.0.1", socks)
            writer.write(b"\x05\x01\x00")
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.write(b"\x05\x01\x00\x03\x09localhost" + port.to_bytes(2, "big"))
            assert (await reader.readexactly(10))[:2] == b"\x05\x00"
            await _ask(reader, writer)
            many = [await asyncio.open_connection("127.0.0.1", here) for _ in range(40)]
            await asyncio.gather(*(_ask(*streams, b"y" * 1000) for streams in many))


@pytest.mark.spec("terminal-ssh-http", 32)
async def test_remote(tmp_path: Path) -> None:
    server = await asyncio.start_server(_shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, clients(tmp_path) as c:
        there, path = free_port(), c.home / "new/dir/socket"
        path.parent.mkdir(parents=True)
        path.write_text("in the way")
        shutil.rmtree(c.home / "new")
        arguments = ("-R", f"localhost:{there}:localhost:{port}", "-R", f"{path}:localhost:{port}")
        async with _forwarding(c, *arguments):
            await _ask(*await asyncio.open_connection("127.0.0.1", there))
            await _ask(*await asyncio.open_unix_connection(path))
            assert path.parent.stat().st_mode & 0o777 == 0o700
        await until(lambda: not path.exists())
        # Something is in the way; afterwards the port is free again.
        path.write_text("in the way")
        async with _forwarding(c, *arguments):
            await _ask(*await asyncio.open_unix_connection(path))
            await _ask(*await asyncio.open_connection("127.0.0.1", there))


@pytest.mark.spec("terminal-ssh-http", 32, 33)
async def test_second_forwards_unknown_cancels_and_blocked_ways(tmp_path: Path) -> None:
    async with clients(tmp_path) as c, c.host.client() as client:
        path = str(c.home / "s")
        listener = await client.forward_remote_path(path, path)
        for name, key in (("streamlocal-forward@openssh.com", path), ("cancel-streamlocal-forward@openssh.com", "no")):
            assert await _request(client, name, asyncssh.packet.String(key))
        unknown = asyncssh.packet.String("localhost") + asyncssh.packet.UInt32(1)
        assert await _request(client, "cancel-tcpip-forward", unknown)
        assert not await _request(client, "no-such-request@example.com", b"")
        assert (await client.run("echo alive", encoding=None)).stdout == b"alive\n"
        listener.close()
        with pytest.raises(asyncssh.ChannelOpenError, match=f'dial unix socket "{path}x"') as refused:
            await client.open_unix_connection(path + "x")
        assert refused.value.code == asyncssh.OPEN_CONNECT_FAILED
    for blocked in ("local", "remote"):
        options = Options(block_local_forwarding=blocked == "local", block_remote_forwarding=blocked == "remote")
        below = tmp_path / blocked
        below.mkdir()
        async with clients(below, options=options) as c, c.host.client() as client:
            server = await asyncio.start_unix_server(_shout, below / "service")
            async with server:
                if blocked == "local":
                    for opening, text in (
                        (client.open_connection("localhost", 1), "port forwarding is disabled"),
                        (client.open_unix_connection(str(below / "service")), "local port forwarding is disabled"),
                    ):
                        with pytest.raises(asyncssh.ChannelOpenError) as refused:
                            await opening
                        assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
                        assert refused.value.reason == text
                    assert (await client.forward_remote_port("localhost", 0, "localhost", 1)).get_port()
                    await client.forward_remote_path(str(below / "x"), "y")
                else:
                    for requesting in (
                        client.forward_remote_port("localhost", 0, "localhost", 1),
                        client.forward_remote_path(str(below / "x"), "y"),
                    ):
                        with pytest.raises(asyncssh.ChannelListenError):
                            await requesting
                    _, writer = await client.open_unix_connection(str(below / "service"))
                    writer.close()


async def _request(client: asyncssh.SSHClientConnection, name: str, payload: bytes) -> bool:
    answer, _ = await client._make_global_request(name.encode(), payload)
    return bool(answer == MSG_REQUEST_SUCCESS)


@pytest.mark.spec("terminal-ssh-http", 32)
async def test_the_agent_is_forwarded(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        path = str(tmp_path / "agent.sock")
        keys = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", path, stdout=subprocess.DEVNULL)
        try:
            await until(lambda: os.path.exists(path))
            environment = {"SSH_AUTH_SOCK": path}
            assert (await c.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mine", "-f", "key")).status == 0
            assert (await c.run("ssh-add", "-q", "key", environment=environment)).status == 0
            done = await c.run("ssh", "-A", "agent", "ssh-add -l", environment=environment)
            assert done.status == 0, done
            assert b"mine" in done.out
            assert (await c.run("ssh", "agent", "echo ${SSH_AUTH_SOCK-none}")).out == b"none\n"
        finally:
            keys.terminate()
            await keys.wait()


@pytest.mark.spec("terminal-ssh-http", 32)
@pytest.mark.skipif(shutil.which("xdpyinfo") is None or shutil.which("xauth") is None, reason="needs X11's tools")
async def test_x11(tmp_path: Path) -> None:
    """The display is a stub that refuses clients, once it has seen their cookie."""
    asked: list[bytes] = []

    async def display(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readexactly(48))
        reason = b"not today...."
        reason += bytes(-len(reason) % 4)
        writer.write(bytes((0, len(reason))) + b"\x0b\x00\x00\x00" + (len(reason) // 4).to_bytes(2, "little") + reason)
        await writer.drain()
        writer.close()

    async with clients(tmp_path) as c:
        port = next(number for number in range(6100, 6200) if _is_free(number))
        server = await asyncio.start_server(display, "127.0.0.1", port)
        async with server:
            environment = {"DISPLAY": f"127.0.0.1:{port - 6000}", "XAUTHORITY": str(c.here / "auth")}
            cookie = os.urandom(16).hex()
            done = await c.run("xauth", "add", environment["DISPLAY"], ".", cookie, environment=environment)
            assert done.status == 0, done
            done = await c.run("ssh", "-Y", "agent", "echo $DISPLAY; xauth list; xdpyinfo", environment=environment)
            assert b"localhost:1" in done.out
            assert b"not today" in done.err, done
            assert bytes.fromhex(cookie) in asked[0]
            assert (c.home / ".Xauthority").stat().st_mode & 0o777 == 0o600
            blocked = c.home / ".Xauthority"
            blocked.unlink()
            blocked.mkdir()
            done = await c.run("ssh", "-Y", "agent", "true", environment=environment)
            assert done.status == 1
            assert c.host.server.counters.x11_errors == {"xauthority": 1}


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.mark.spec("terminal-ssh-http", 34)
async def test_a_forward_to_a_jetbrains_ide_is_one_of_its_sessions(tmp_path: Path) -> None:
    async with clients(tmp_path) as c, c.host.client() as client:
        code = (
            "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
            "s.accept(); time.sleep(60)"
        )
        ide = await c.start(sys.executable, "-c", code, "-Didea.vendor.name=JetBrains")
        try:
            assert ide.stdout is not None
            port = int(await ide.stdout.readline())
            _, writer = await client.open_connection("127.0.0.1", port, "192.0.2.7", 5)
            await until(lambda: c.host.server.counters.live[Kind.JETBRAINS] == 1)
            assert [(kind, address) for _, kind, address in c.host.reports.begun] == [(Kind.JETBRAINS, "192.0.2.7")]
            writer.close()
            await until(lambda: c.host.server.counters.live[Kind.JETBRAINS] == 0)
            assert [end[1:] for end in c.host.reports.ended] == [(0, "normal close")]
        finally:
            ide.kill()
            await ide.wait()


@pytest.mark.spec("terminal-ssh-http", 37)
async def test_a_client_that_half_closes_is_gone_within_a_second(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        port = free_port()
        async with c.host.client() as client:
            await client.forward_remote_port("localhost", port, "localhost", 1)
            assert not _is_free(port)
            client.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await until(lambda: _is_free(port) and c.host.server.connections == 0, 1.0)


async def test_when_displays_run_out_the_one_least_used_is_taken(tmp_path: Path) -> None:
    async with clients(tmp_path) as c, c.host.client():
        (connection,) = c.host.connections()
        displays = c.host.server.displays
        evicted: list[int] = []
        request = X11Request(False, b"MIT-MAGIC-COOKIE-1", os.urandom(16), 0)
        opened: list[Display] = []
        while not evicted:
            assert len(opened) <= LAST_DISPLAY - FIRST_DISPLAY + 1
            number = len(opened)
            opened.append(await displays.open(connection, request, partial(evicted.append, number)))
            if number == 1:
                # The first one is used: the second one is now the least recently used.
                _, writer = await asyncio.open_connection("127.0.0.1", BASE_PORT + opened[0].number)
                await until(lambda: next(iter(displays._open.values())) is opened[1])
                writer.close()
        assert evicted == [1]
        assert opened[-1].number == opened[1].number
        entries = list(parse_authority((c.home / ".Xauthority").read_bytes()))
        assert len(entries) == len({display.number for display in opened})
        for display in opened:
            displays.close(display)


async def test_a_single_connection_is_the_only_one(tmp_path: Path) -> None:
    async with clients(tmp_path) as c, c.host.client():
        (connection,) = c.host.connections()
        request = X11Request(True, b"MIT-MAGIC-COOKIE-1", os.urandom(16), 0)
        display = await c.host.server.displays.open(connection, request, lambda: None)
        port = BASE_PORT + display.number
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: _is_free(port))
        writer.close()
