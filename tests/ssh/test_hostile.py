"""Clients that ask for too much, or for nonsense: each gets an answer, and the others go on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import String, UInt32

from agent.ssh.connection import MAX_CHANNELS
from tests.ssh.support import PlainClient, hosting, until


async def test_an_unknown_subsystem_is_refused(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.create_process(subsystem="netconf", encoding=None)
        assert (await client.run("echo x", encoding=None)).stdout == b"x\n"
        assert not host.reports.begun[1:]


async def test_a_thousand_channels_and_more(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, PlainClient(host) as client:
        for number in range(MAX_CHANNELS + 5):
            client.open_session(number)
        await until(lambda: client.opened + len(client.refused) == MAX_CHANNELS + 5)
        assert client.opened == MAX_CHANNELS
        assert {code for code, _ in client.refused} == {asyncssh.OPEN_RESOURCE_SHORTAGE}
        assert client.refused[0][1] == f"a connection has at most {MAX_CHANNELS} channels"
        assert host.server.connections == 1
        async with host.client() as other:
            assert (await other.run("echo x", encoding=None)).stdout == b"x\n"


async def test_a_giant_environment_is_cut(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        done = await client.run("env | wc -c", env={f"V{number}": "x" * 30_000 for number in range(50)}, encoding=None)
        assert done.exit_status == 0
        assert isinstance(done.stdout, bytes)
        assert 200_000 < int(done.stdout) < 300_000


async def test_odd_sizes_of_a_window(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        size = (0xFFFFFFFF, 0, 0xFFFFFFFF, 0xFFFFFFFF)
        process = await client.create_process("read x; stty size", term_type="x", term_size=size, encoding=None)
        process.channel._send_request(b"window-change", *(UInt32(0x10000 + 7),) * 4)
        process.stdin.write(b"\n")
        assert b"65535 65535" in await process.stdout.read()
        plain = await client.create_process("cat", encoding=None)
        payload = (UInt32(1),) * 4
        assert not await plain.channel._make_request(b"window-change", *payload)
        assert not await plain.channel._make_request(b"env", String("A"), String("b"))
        assert not await plain.channel._make_request(b"shell")
        assert not await plain.channel._make_request(b"break", UInt32(1))
        assert not await plain.channel._make_request(b"no-such-request")
        assert await plain.channel._make_request(b"keepalive@openssh.com")


async def test_a_command_of_any_bytes_and_of_any_length(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process("cat", encoding=None)
        process.stdin.write_eof()
        await process.wait()
        done = await client.run("# " + "x" * 150_000 + "\necho long", encoding=None)
        assert done.stdout == b"long\n"
        assert (await client.run("echo a\0b", encoding=None)).exit_status == 229


@pytest.mark.parametrize("seed", range(20))
async def test_noise_costs_its_connection_only(tmp_path: Path, seed: int) -> None:
    async with hosting(tmp_path) as host:
        sock = host.connect()
        with sock:
            sock.send(b"SSH-2.0-noise\r\n" + os.urandom(200 + seed * 50))
            if seed % 2:
                sock.send(UInt32(0xFFFFFFFF))
            await asyncio.sleep(0)
        await until(lambda: host.server.connections == 0)
        async with host.client() as client:
            assert (await client.run("echo x", encoding=None)).stdout == b"x\n"


async def test_a_client_that_does_not_read_fills_no_memory(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, PlainClient(host) as client:
        client.open_session(0)
        await until(lambda: client.opened)
        client.widen(0, 0x7FFFFFFF)
        client.stop_reading()
        client.request(0, b"exec", String("cat /dev/zero"))
        await asyncio.sleep(0.5)
        (connection,) = host.connections()
        assert connection.full
        waiting = sum(channel.get_write_buffer_size() for channel in connection._channels.values())
        assert waiting < 1 << 20
        assert connection._transport.get_write_buffer_size() < 1 << 20
