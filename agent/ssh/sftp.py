"""SFTP, version 3, on the workspace's files as the agent's user (terminal-ssh-http.md §3.9)."""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncssh
from asyncssh.sftp import run_sftp_server
from asyncssh.stream import SSHServerStreamSession

from agent.ssh.command import CommandContext
from agent.ssh.streams import Window

if TYPE_CHECKING:
    from agent.ssh.channel import SessionChannel

T = TypeVar("T")

VERSION: Final = 3
_BATCH: Final = 256
"""Directory entries that are looked at in one go."""


class SftpWork:
    """Answers the requests that come over one channel. Callbacks as for a command."""

    def __init__(self, channel: SessionChannel, context: CommandContext) -> None:
        self._channel = channel
        self._context = context
        self._stream = SSHServerStreamSession[bytes](None)
        self._stream.connection_made(channel)

    async def run(self) -> Exception | None:
        """Until the client ends it, or its cause when it broke."""
        directory = await asyncio.to_thread(self._context.directory)
        server = Files(self._channel, os.fsencode(directory))
        reader = asyncssh.SSHReader[bytes](self._stream, self._channel)
        writer = asyncssh.SSHWriter[bytes](self._stream, self._channel)
        await run_sftp_server(server, reader, writer, VERSION)
        return None

    def data_received(self, data: bytes) -> None:
        self._stream.data_received(data, None)

    def eof_received(self) -> None:
        self._stream.eof_received()

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()

    def resize(self, window: Window) -> None:
        """There is nothing to draw."""

    def signal(self, name: str) -> None:
        """There is no process."""

    def channel_lost(self) -> None:
        self._stream.connection_lost(None)


class Files(asyncssh.SFTPServer):
    """asyncssh's server, relative paths from `directory`, and every operation in a thread: a disk may be slow."""

    def __init__(self, channel: SessionChannel, directory: bytes) -> None:
        super().__init__(channel)
        self._directory = directory

    def map_path(self, path: bytes) -> bytes:
        return posixpath.join(self._directory, path)

    async def realpath(self, path: bytes) -> bytes:
        return await asyncio.to_thread(os.path.realpath, self.map_path(path))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        entries = await asyncio.to_thread(os.scandir, self.map_path(path))
        try:
            for name in (b".", b".."):
                yield await asyncio.to_thread(_named, self.map_path(path), name)
            while batch := await asyncio.to_thread(_batch, self.map_path(path), entries):
                for entry in batch:
                    yield entry
        finally:
            entries.close()

    def exit(self) -> None:
        """The client has ended it: without a status scp on macOS fails."""
        self.channel.exit(0)


def _threaded(method: Callable[..., T]) -> Callable[..., Any]:
    async def run(*args: Any) -> T:
        return await asyncio.to_thread(method, *args)

    return run


for _name in (
    "open", "close", "read", "write", "lstat", "stat", "fstat", "setstat", "lsetstat", "fsetstat", "remove", "mkdir",
    "rmdir", "rename", "posix_rename", "readlink", "symlink", "link", "statvfs", "fstatvfs", "fsync",
):  # fmt: skip
    setattr(Files, _name, _threaded(getattr(asyncssh.SFTPServer, _name)))


def _named(directory: bytes, name: bytes) -> asyncssh.SFTPName:
    return asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs.from_local(os.lstat(posixpath.join(directory, name))))


def _batch(directory: bytes, entries: Iterator[os.DirEntry[bytes]]) -> list[asyncssh.SFTPName]:
    """The next entries; those that have gone meanwhile are left out."""
    found: list[asyncssh.SFTPName] = []
    for entry in entries:
        try:
            found.append(_named(directory, entry.name))
        except FileNotFoundError:
            continue
        if len(found) == _BATCH:
            break
    return found
