"""Windows of the workspace's programs on the client's display (terminal-ssh-http.md §3.11)."""

from __future__ import annotations

import asyncio
import binascii
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from asyncssh.listener import SSHListener, create_tcp_forward_listener

if TYPE_CHECKING:
    from agent.ssh.connection import Connection

FIRST_DISPLAY: Final = 10
LAST_DISPLAY: Final = 200
BASE_PORT: Final = 6000
EVICTIONS: Final = 10
"""How many sessions may lose their display so that a new one gets one."""
LOCK_LIMIT: Final = 10.0
"""Seconds to wait for others that write the same authority file."""
_LOCK_POLL: Final = 0.1
_LOCAL: Final = 0x0100
MAX_AUTHORITY: Final = 1 << 20


class X11Error(Exception):
    """No display for a session. `step` is what the metric calls it."""

    def __init__(self, step: str, text: str) -> None:
        super().__init__(text)
        self.step = step


@dataclass(frozen=True, slots=True)
class X11Request:
    """What a client wants; `single`: only one connection."""

    single: bool
    protocol: bytes
    cookie: bytes = field(repr=False)
    screen: int

    @classmethod
    def parse(cls, single: bool, protocol: bytes, cookie: bytes, screen: int) -> X11Request | None:
        """None for a cookie that is not hexadecimal."""
        try:
            return cls(single, protocol, binascii.a2b_hex(cookie), screen)
        except binascii.Error:
            return None


class Display:
    """One listener. `evict` ends the session that it belongs to."""

    def __init__(self, number: int, evict: Callable[[], None]) -> None:
        self.number = number
        self.evict = evict
        self.listener: SSHListener | None = None

    def close(self) -> None:
        """Idempotent; connections that there are go on."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None


class Displays:
    """All displays of the agent's sessions, the least recently used one first. `home` has the authority file."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._open: dict[int, Display] = {}

    async def open(self, connection: Connection, request: X11Request, evict: Callable[[], None]) -> Display:
        """A display for a session; `close` it with the session. Raises `X11Error`."""
        display = await self._listen(connection, request, evict)
        try:
            host = socket.gethostname().encode()
            entry = Entry(_LOCAL, host, str(display.number).encode(), request.protocol, request.cookie)
            await asyncio.to_thread(write_authority, os.path.join(self._home, ".Xauthority"), entry)
        except (OSError, ValueError) as error:
            self.close(display)
            raise X11Error("xauthority", f"~/.Xauthority cannot be written: {error}") from error
        except BaseException:
            self.close(display)
            raise
        return display

    def close(self, display: Display) -> None:
        """Idempotent."""
        display.close()
        if self._open.get(display.number) is display:
            del self._open[display.number]

    async def _listen(self, connection: Connection, request: X11Request, evict: Callable[[], None]) -> Display:
        for _ in range(EVICTIONS):
            for number in range(FIRST_DISPLAY, LAST_DISPLAY + 1):
                if number in self._open:
                    continue
                display = self._open[number] = Display(number, evict)
                try:
                    display.listener = await self._listener(connection, request, display)
                    return display
                except OSError:  # another program has the port
                    self.close(display)
                except BaseException:
                    self.close(display)
                    raise
            if not self._open:
                break
            oldest = next(iter(self._open.values()))
            self.close(oldest)
            oldest.evict()
        raise X11Error("listen", f"no display from {FIRST_DISPLAY} to {LAST_DISPLAY} is free")

    async def _listener(self, connection: Connection, request: X11Request, display: Display) -> SSHListener:
        async def connect(factory: Any, host: str, port: int) -> Any:
            self._used(display)
            if request.single:
                display.close()
            return await connection.create_x11_connection(factory, host, port)

        loop = asyncio.get_running_loop()
        return await create_tcp_forward_listener(connection, loop, connect, "localhost", BASE_PORT + display.number)

    def _used(self, display: Display) -> None:
        if self._open.get(display.number) is display:
            self._open[display.number] = self._open.pop(display.number)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an authority file: five fields, big-endian, lengths of 16 bits."""

    family: int
    address: bytes
    number: bytes
    protocol: bytes
    cookie: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Raises `ValueError` for a field that is too long."""
        parts = (self.address, self.number, self.protocol, self.cookie)
        if any(len(part) > 0xFFFF for part in parts):
            raise ValueError("a field of the entry is longer than 65535 bytes")
        return struct.pack(">H", self.family) + b"".join(struct.pack(">H", len(part)) + part for part in parts)

    @property
    def key(self) -> tuple[int, bytes, bytes, bytes]:
        """What may be there once only."""
        return self.family, self.address, self.number, self.protocol


def parse_authority(data: bytes) -> Iterator[Entry]:
    """The entries of a file. Raises `ValueError` where it ends in the middle of one."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if at + count > len(data):
            raise ValueError("the file ends in the middle of an entry; remove it or repair it with xauth")
        at += count
        return data[at - count : at]

    def number() -> int:
        return int.from_bytes(take(2), "big")

    while at < len(data):
        family = number()
        yield Entry(family, take(number()), take(number()), take(number()), take(number()))


def merge_authority(data: bytes, entry: Entry) -> bytes:
    """The file with `entry`: in the place of the first one with its key, or at the end. Raises `ValueError`."""
    merged: list[Entry] = []
    placed = False
    for existing in parse_authority(data):
        if existing.key != entry.key:
            merged.append(existing)
        elif not placed and len(existing.cookie) == len(entry.cookie):
            merged.append(entry)
            placed = True
    if not placed:
        merged.append(entry)
    return b"".join(part.encode() for part in merged)


def write_authority(path: str, entry: Entry) -> None:
    """Put `entry` into the file, alone at it. Waits: call it in a thread. Raises `OSError`, `ValueError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as file:
        _lock(descriptor, path)
        data = file.read(MAX_AUTHORITY + 1)
        if len(data) > MAX_AUTHORITY:
            raise ValueError(f"it has more than {MAX_AUTHORITY} bytes")
        merged = merge_authority(data, entry)
        file.seek(0)
        file.write(merged)
        file.truncate()


def _lock(descriptor: int, path: str) -> None:
    """`flock`, within a time limit. Raises `OSError`."""
    until = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError(f"{path} is locked by another program for {LOCK_LIMIT:g} s") from None
            time.sleep(_LOCK_POLL)
