"""The two ends of a command on the event loop: what it writes and what it is given, with back-pressure both ways."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

READ_SIZE: Final = 65536
_TTY_WRITE: Final = 4096
"""What a terminal's line discipline takes at a time."""
_PIPE_WRITE: Final = 65536
_MAX_SIZE: Final = 0xFFFF
"""Of a window: the kernel has 16 bits for each number."""


@dataclass(frozen=True, slots=True)
class Window:
    """The size of a terminal, as a client said it."""

    rows: int
    columns: int
    width: int = 0
    height: int = 0

    def packed(self) -> bytes:
        """`struct winsize`."""
        return struct.pack("4H", *(min(n, _MAX_SIZE) for n in (self.rows, self.columns, self.width, self.height)))


class Source:
    """Reads a descriptor, which it owns, and hands everything to `deliver`. The end of a terminal (EIO) is an end."""

    def __init__(self, fd: int, deliver: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self.ended = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def pause(self) -> None:
        """Leave output where it is: the command blocks when the kernel's buffer is full."""
        if self._fd >= 0 and not self._paused:
            self._loop.remove_reader(self._fd)
        self._paused = True

    def resume(self) -> None:
        if self._fd >= 0 and self._paused:
            self._loop.add_reader(self._fd, self._read)
        self._paused = False

    def close(self) -> None:
        """Read no more: who writes from now on gets an error. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self._paused:
                self._loop.remove_reader(fd)
            os.close(fd)
        self.ended.set()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other side of the terminal open
            data = b""
        if data:
            self._deliver(data)
        else:
            self.close()


class Sink:
    """Writes to a descriptor, which it owns.

    What the command does not take at once is kept, and `pause` asks for no more meanwhile. It is bounded by what the
    other side may send unasked: the window of an SSH channel.
    """

    def __init__(self, fd: int, pause: Callable[[], None], resume: Callable[[], None], *, tty: bool) -> None:
        self._fd = fd
        self._pause = pause
        self._resume = resume
        self._piece = _TTY_WRITE if tty else _PIPE_WRITE
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._ending = False
        os.set_blocking(fd, False)

    def write(self, data: bytes) -> None:
        """Hand over `data`; what nobody wants any more is thrown away."""
        if self._fd < 0 or self._ending or not data:
            return
        self._waiting.append(memoryview(data))
        if len(self._waiting) == 1:
            self._flush()
            if self._waiting:
                self._loop.add_writer(self._fd, self._writable)
                self._pause()

    def resize(self, window: Window) -> None:
        """For a terminal. Raises `OSError`."""
        if self._fd >= 0:
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, window.packed())

    def end(self) -> None:
        """Close the descriptor once everything is written. Idempotent."""
        self._ending = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close it at once. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._waiting:
            self._waiting.clear()
            self._loop.remove_writer(fd)
            self._resume()  # to see the end of the input, or to throw the rest away
        os.close(fd)

    def _writable(self) -> None:
        self._flush()
        if self._fd >= 0 and not self._waiting:
            self._loop.remove_writer(self._fd)
            if self._ending:
                self.close()
            else:
                self._resume()

    def _flush(self) -> None:
        while self._waiting:
            view = self._waiting[0]
            try:
                taken = os.write(self._fd, view[: self._piece])
            except BlockingIOError:
                return
            except OSError:  # EPIPE, or a terminal whose session has ended: nobody reads any more
                self.close()
                return
            if taken == len(view):
                self._waiting.popleft()
            else:
                self._waiting[0] = view[taken:]
