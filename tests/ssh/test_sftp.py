"""SFTP with asyncssh's own client, and with clients that vanish."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import String, UInt32, UInt64

from agent.ssh.sftp import MAX_HANDLES, MAX_READ
from tests.ssh.support import hosting, until


@pytest.mark.spec("terminal-ssh-http", 30)
async def test_files(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        async with client.start_sftp_client() as sftp:
            assert os.fsdecode(await sftp.getcwd()) == str(tmp_path)
            assert os.fsdecode(await sftp.realpath("a/../b")) == str(tmp_path / "b")
            data = os.urandom(700_000)
            async with sftp.open("file", "wb") as file:
                await file.write(data)
            async with sftp.open("file", "rb") as file:
                read: object = await file.read()  # the types say text
                assert read == data
                assert len(await file.read(10 * MAX_READ, 0)) == len(data)
            await sftp.mkdir("d")
            await sftp.rename("file", "d/one")
            await sftp.posix_rename("d/one", "d/two")
            await sftp.symlink("two", "d/link")
            await sftp.link("d/two", "d/three")
            assert await sftp.readlink("d/link") == "two"
            assert sorted(map(str, await sftp.listdir("d"))) == [".", "..", "link", "three", "two"]
            await sftp.chmod("d/two", 0o640)
            assert (await sftp.stat("d/two")).permissions == 0o100640
            assert (await sftp.statvfs(".")).bsize
            assert await sftp.exists("/etc/passwd")  # nobody is locked in
            assert await sftp.exists("../../../../../../../../etc/passwd")
            with pytest.raises(asyncssh.SFTPNoSuchFile):
                await sftp.stat("none")
            with pytest.raises(asyncssh.SFTPFailure):
                await sftp.rmdir("d")
        await until(lambda: len(host.reports.ended) == 1)
        assert host.reports.ended[0][1:] == (0, "")
        assert (host.server.counters.sftp, host.server.counters.sftp_errors) == (1, 0)


async def test_many_entries_and_many_handles(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"f{number}").touch()
    async with hosting(tmp_path) as host, host.client() as client, client.start_sftp_client() as sftp:
        assert len(await sftp.listdir(".")) == 1002
        files = [await sftp.open(f"f{number}", "rb") for number in range(MAX_HANDLES)]
        with pytest.raises(asyncssh.SFTPFailure, match="the most that are possible"):
            await sftp.open("f999", "rb")
        await files.pop().close()
        await sftp.stat(".")
        files.append(await sftp.open("f0", "rb"))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999, 1.0])
async def test_a_client_that_vanishes_leaves_nothing_open_and_no_half_of_a_file(tmp_path: Path, cut: float) -> None:
    """The usual upload: into another file, which is renamed at last."""
    (tmp_path / "final").write_bytes(b"old")
    opened = UInt32(1) + String("part") + UInt32(asyncssh.FXF_WRITE | asyncssh.FXF_CREAT) + UInt32(0)
    writes = [
        b"\x06" + UInt32(2) + String(bytes(4)) + UInt64(number * 32768) + String(bytes(32768)) for number in range(40)
    ]
    renamed = b"\xc8" + UInt32(3) + String("posix-rename@openssh.com") + String("part") + String("final")
    sent = b"".join(String(packet) for packet in (b"\x01" + UInt32(3), b"\x03" + opened, *writes, renamed))
    async with hosting(tmp_path) as host:
        async with host.client() as client:
            process = await client.create_process(subsystem="sftp", encoding=None)
            process.stdin.write(sent[: int(len(sent) * cut)])
            if cut == 1:
                await until(lambda: (tmp_path / "final").stat().st_size > 3)
            client.abort()
        await until(lambda: host.server.connections == 0 and len(host.reports.ended) == 1)
        size = (tmp_path / "final").stat().st_size
        assert size == (40 * 32768 if cut == 1 else 3)
        await until(lambda: not any(_opens(link, tmp_path) for link in os.listdir("/proc/self/fd")))


def _opens(descriptor: str, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(directory))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "noise", [b"\xff\xff\xff\xff", UInt32(5) + b"\x01" + UInt32(3) + UInt32(2) + b"\x03\x00", b"x" * 50]
)
async def test_nonsense_ends_its_session(tmp_path: Path, noise: bytes) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process(subsystem="sftp", encoding=None)
        process.stdin.write(noise)
        process.stdin.write_eof()
        assert (await process.wait()).exit_status in (0, 1)
        assert (await client.run("echo x", encoding=None)).stdout == b"x\n"


async def test_no_directory_to_start_in(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        host.context.directory = _broken  # type: ignore[method-assign]
        process = await client.create_process(subsystem="sftp", encoding=None)
        assert (await process.wait()).exit_status == 1
        assert host.server.counters.sftp_errors == 1


def _broken() -> str:
    raise OSError("no such home")
