"""OpenSSH, scp, sftp, rsync and git against the SSH server."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from agent.ssh.options import Options
from tests.e2e.ssh_client import clients

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")


@pytest.mark.spec("terminal-ssh-http", 24, 25, 28)
async def test_commands(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        done = await c.ssh("nobody@agent", "echo out; echo err >&2; exit 3")
        assert (done.status, done.out, done.err) == (3, b"out\n", b"err\n")
        assert (await c.ssh("agent", "kill -9 $$")).status == 255
        assert (await c.ssh("agent", "wc -c", given=b"x" * 100_000)).out == b"100000\n"
        done = await c.ssh("-tt", "agent", "tput cols; seq 20000; echo end; exit 5")
        assert done.status == 5
        assert done.out.endswith(b"20000\r\nend\r\n")
        # The client goes away; the command sees the end of its input, and goes on.
        process = await c.start("ssh", "agent", "read x; sleep 0.3; echo done > file")
        await asyncio.sleep(0.5)
        process.kill()
        await process.wait()
        async with asyncio.timeout(10):
            while not (c.home / "file").exists():
                await asyncio.sleep(0.02)


@pytest.mark.spec("terminal-ssh-http", 25)
async def test_a_hundred_megabytes_both_ways(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        data = os.urandom(1 << 20) * 100
        # With new keys in the middle, too.
        assert (await c.ssh("-o", "RekeyLimit=9M", "agent", "cat", given=data)).out == data


@pytest.mark.spec("terminal-ssh-http", 30)
async def test_sftp_and_scp_in_both_modes(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        data = os.urandom(3_000_000)
        (c.here / "file").write_bytes(data)
        commands = (
            "pwd\nmkdir d\nput file d/x\nrename d/x d/y\nsymlink y d/z\nget d/z back\nls -la d\nchmod 600 d/y\ndf\n"
            "-rm d/none\nrm d/z\nput file d/y2\nrename d/y2 d/y3\n"
        )
        done = await c.run("sftp", "-b", "-", "agent", given=commands.encode())
        assert done.status == 0, done
        assert f"Remote working directory: {c.home}".encode() in done.out
        assert (c.here / "back").read_bytes() == data
        assert (c.home / "d/y").stat().st_mode & 0o777 == 0o600
        for mode in ((), ("-O",)):
            done = await c.run("scp", *mode, "-r", "-p", f"agent:{c.home}/d", "copy")
            assert done.status == 0, done
            assert (c.here / "copy/y").read_bytes() == data
            shutil.rmtree(c.here / "copy")
            done = await c.run("scp", *mode, "file", "agent:up")
            assert done.status == 0, done
            assert (c.home / "up").read_bytes() == data
            (c.home / "up").unlink()


@pytest.mark.spec("terminal-ssh-http", 30)
@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
async def test_rsync(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        source = c.here / "tree"
        for number in range(200):
            path = source / f"d{number % 7}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(number * 100))
        shell = f"ssh -F {c.config}"
        done = await c.run("rsync", "-a", "--stats", "-e", shell, "tree/", "agent:tree/")
        assert done.status == 0, done
        done = await c.run("rsync", "-a", "-e", shell, "agent:tree/", "back/")
        assert done.status == 0, done
        same = await c.run("diff", "-r", "tree", "back")
        assert same.status == 0


async def test_git_over_ssh(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        for command in ("init -q --bare repo.git", "-C repo.git symbolic-ref HEAD refs/heads/main"):
            assert (await c.ssh("agent", f"git {command}")).status == 0
        assert (await c.run("git", "init", "-q", "-b", "main", "work")).status == 0
        (c.here / "work/file").write_bytes(os.urandom(2_000_000))
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        for arguments in (
            ("add", "."),
            (*identity, "commit", "-qm", "one"),
            ("push", "-q", f"agent:{c.home}/repo.git", "main"),
        ):
            done = await c.run("git", "-C", "work", *arguments)
            assert done.status == 0, done
        done = await c.run("git", "clone", "-q", f"agent:{c.home}/repo.git", "again")
        assert done.status == 0, done
        assert (c.here / "again/file").read_bytes() == (c.here / "work/file").read_bytes()


@pytest.mark.spec("terminal-ssh-http", 31)
async def test_blocked_file_transfer(tmp_path: Path) -> None:
    async with clients(tmp_path, options=Options(block_file_transfer=True)) as c:
        (c.here / "file").write_bytes(b"x")
        for command in ("scp -t .", "/usr/bin/rsync --server", "nc -l 1", "'sftp' x"):
            done = await c.ssh("agent", command)
            assert (done.status, done.out) == (65, b"\x02File transfer has been disabled.\n")
        assert (await c.run("sftp", "-b", "-", "agent", given=b"pwd\n")).status == 255
        assert (await c.run("scp", "file", "agent:x")).status != 0
        assert b"disabled" in (await c.run("scp", "-O", "file", "agent:x")).err
        assert (await c.ssh("agent", "sh -c 'echo scp'")).status == 0
        assert {(status, reason) for _, status, reason in c.host.reports.ended} == {
            (65, "file transfer blocked"),
            (0, "graceful"),
        }


@pytest.mark.skipif(shutil.which("sshfs") is None or not os.path.exists("/dev/fuse"), reason="needs sshfs and FUSE")
async def test_sshfs(tmp_path: Path) -> None:
    async with clients(tmp_path) as c:
        mount = c.here / "mnt"
        mount.mkdir()
        (c.home / "there").write_bytes(b"seen")
        done = await c.run("sshfs", "-F", c.config, f"agent:{c.home}", mount)
        if done.status:
            pytest.skip(f"no file system can be mounted here: {done.err!r}")
        try:
            assert await asyncio.to_thread((mount / "there").read_bytes) == b"seen"
            await asyncio.to_thread((mount / "new").write_bytes, b"w" * 500_000)
            assert (c.home / "new").stat().st_size == 500_000
        finally:
            await c.run("fusermount3", "-u", mount)
