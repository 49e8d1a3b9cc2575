"""SFTP, version 3, on the workspace's files as the agent's user (terminal-ssh-http.md §3.9)."""

from __future__ import annotations

import asyncio
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.sftp import SFTPServerHandler
from asyncssh.stream import SSHServerStreamSession

from agent.ssh.command import CommandContext
from agent.ssh.streams import Window

if TYPE_CHECKING:
    from agent.ssh.channel import SessionChannel

VERSION: Final = 3
MAX_HANDLES: Final = 256
"""Files and directories that one session has open at a time."""
MAX_READ: Final = 1 << 20
"""Bytes of an answer, whatever is asked for."""
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
        """Until the client ends it; its cause when it broke. Raises what the context raises."""
        directory = await asyncio.to_thread(self._context.directory)
        # Of its own: a disk that does not answer holds up this session and nobody else.
        with _Executor() as executor:
            handler = _Handler(Files(self._channel, os.fsencode(directory), executor), self._stream, self._channel)
            await handler.run()
        return handler.error

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


class _Executor(ThreadPoolExecutor):
    """One thread, which nobody waits for at the end."""

    def __init__(self) -> None:
        super().__init__(1, "sftp")

    def __exit__(self, *args: object) -> None:
        self.shutdown(wait=False)


class _Handler(SFTPServerHandler):
    """asyncssh's, which keeps to itself why it ended."""

    def __init__(self, files: Files, stream: SSHServerStreamSession[bytes], channel: SessionChannel) -> None:
        reader = asyncssh.SSHReader[bytes](stream, channel)
        writer = asyncssh.SSHWriter[bytes](stream, channel)
        super().__init__(files, reader, writer, VERSION)
        self._files = files
        self.error: Exception | None = None

    async def _process_packet(self, pkttype: int, pktid: int, packet: Any) -> None:
        self._files.handles = len(self._file_handles) + len(self._dir_handles)
        await super()._process_packet(pkttype, pktid, packet)

    async def _cleanup(self, exc: Exception | None) -> None:
        self.error = exc
        self._files.failed = exc is not None
        await super()._cleanup(exc)


class Files(asyncssh.SFTPServer):
    """asyncssh's server: relative paths begin at `directory`, and every operation runs in the thread of `executor`."""

    def __init__(self, channel: SessionChannel, directory: bytes, executor: ThreadPoolExecutor) -> None:
        super().__init__(channel)
        self._directory = directory
        self._executor = executor
        self.handles = 0
        """What is open."""
        self.failed = False

    def map_path(self, path: bytes) -> bytes:
        return posixpath.join(self._directory, path)

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        self._check_room()
        return await self._call(super().open, path, pflags, attrs)

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        data: bytes = await self._call(super().read, file_obj, offset, min(size, MAX_READ))
        return data

    async def realpath(self, path: bytes) -> bytes:
        found: bytes = await self._call(os.path.realpath, self.map_path(path))
        return found

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        self._check_room()
        directory = self.map_path(path)
        entries = await self._call(os.scandir, directory)
        try:
            for name in (b".", b".."):
                yield await self._call(_named, directory, name)
            while batch := await self._call(_batch, directory, entries):
                for entry in batch:
                    yield entry
        finally:
            entries.close()

    def exit(self) -> None:
        """It is over. Without a status scp on macOS fails."""
        self.channel.exit(1 if self.failed else 0)

    def _check_room(self) -> None:
        if self.handles >= MAX_HANDLES:
            raise asyncssh.SFTPFailure(f"{MAX_HANDLES} files and directories are open, the most that are possible")

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


def _threaded(method: Callable[..., Any]) -> Callable[..., Any]:
    async def run(self: Files, *args: Any) -> Any:
        return await self._call(method, self, *args)

    return run


for _name in (
    "close", "write", "lstat", "stat", "fstat", "setstat", "lsetstat", "fsetstat", "remove", "mkdir", "rmdir",
    "rename", "posix_rename", "readlink", "symlink", "link", "statvfs", "fstatvfs", "fsync",
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
