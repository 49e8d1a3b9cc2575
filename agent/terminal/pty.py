"""The master side of a terminal on the event loop, and the process that the terminal was made for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from typing import Final

_WRITE_SIZE: Final = 4096
"""Bytes per write: what the line discipline takes at a time."""


class PtyClosedError(Exception):
    """Nobody has the terminal open any more."""


class Process:
    """Owns a pidfd: unlike a number it never means another process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        # PermissionError: it runs as another user (sudo); the hang-up of its terminal ends it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        os.close(self._fd)


class Pty:
    """Owns a non-blocking master descriptor. Closed means closed: calls do nothing, writes raise `PtyClosedError`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._turn = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None

    @property
    def reading(self) -> bool:
        return self._reading

    def start_reading(self, readable: Callable[[], None]) -> None:
        """Call `readable` whenever there is something to `read`."""
        if self._fd >= 0 and not self._reading:
            self._loop.add_reader(self._fd, readable)
            self._reading = True

    def stop_reading(self) -> None:
        """Leave output where it is: the program blocks when the kernel's buffer is full."""
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def read(self, limit: int) -> bytes | None:
        """What there is, at most `limit` bytes, empty for nothing at the moment; None at the end."""
        parts: list[bytes] = []
        room = limit
        while room > 0:
            try:
                data = os.read(self._fd, room)
            except BlockingIOError:
                break
            except OSError:  # EIO: nobody has the other side open
                data = b""
            if not data:
                return b"".join(parts) if parts else None
            parts.append(data)
            room -= len(data)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Hand all of `data` to the terminal, waiting while its input buffer is full. Raises `PtyClosedError`."""
        async with self._turn:  # what one writes is not torn apart by another
            at = 0
            while at < len(data):
                if self._fd < 0:
                    raise PtyClosedError("the terminal is closed")
                try:
                    at += os.write(self._fd, data[at : at + _WRITE_SIZE])
                except BlockingIOError:
                    await self._until_writable()
                except OSError as error:
                    raise PtyClosedError(f"the terminal takes no input: {error.strerror}") from error

    def resize(self, rows: int, columns: int) -> None:
        """Raises `OSError`."""
        if self._fd >= 0:
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def size(self) -> tuple[int, int]:
        """Rows and columns. Raises `OSError`."""
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(self._fd, termios.TIOCGWINSZ, bytes(8)))
        return rows, columns

    def close(self) -> None:
        """Whoever waits to write is told. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._reading:
            self._loop.remove_reader(fd)
            self._reading = False
        if self._writable is not None:
            self._loop.remove_writer(fd)
            if not self._writable.done():
                self._writable.set_result(None)
        os.close(fd)

    async def _until_writable(self) -> None:
        fd = self._fd
        self._writable = self._loop.create_future()
        self._loop.add_writer(fd, self._set_writable)
        try:
            await self._writable
        finally:
            self._writable = None
            if self._fd == fd:
                self._loop.remove_writer(fd)

    def _set_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
