"""An SSH server and asyncssh's own client, joined by a socket pair: no port is opened."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncssh
from asyncssh.constants import (
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from agent.clock import SystemClock
from agent.ssh.counters import Kind
from agent.ssh.greeting import Greeting
from agent.ssh.hostkey import RsaPrimes, derive
from agent.ssh.options import Options
from agent.ssh.server import SshServer

PEER = bytes.fromhex("fd7a115ca1e00000000000000000002a")
_KEY: list[RsaPrimes] = []


def host_key() -> bytes:
    """The key of seed 1234: the quickest of the vectors."""
    if not _KEY:
        _KEY.append(derive(1234))
    return _KEY[0].pem()


class SocketStream:
    """What the server needs of a connection, over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self.peer = (PEER, 40000)

    async def read(self, limit: int = 262_144) -> bytes:
        return await self._loop.sock_recv(self._socket, limit)

    async def write(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self._socket, data)

    def shutdown_write(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def abort(self) -> None:
        self._socket.close()


@dataclass
class Context:
    """What commands run with."""

    home: Path
    program: str = "/bin/bash"
    variables: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None

    def environment(self, requested: dict[str, str] | None = None) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        own = {"HOME": str(self.home), "PATH": os.environ["PATH"], **self.variables}
        return {**(requested or {}), **own}

    def shell(self) -> str:
        return self.program

    def directory(self) -> str:
        return str(self.home)


@dataclass
class Reports:
    """Remembers what it is told."""

    begun: list[tuple[UUID, Kind, str]] = field(default_factory=list)
    ended: list[tuple[UUID, int, str]] = field(default_factory=list)

    def connected(self, session: UUID, kind: Kind, address: str) -> None:
        self.begun.append((session, kind, address))

    def disconnected(self, session: UUID, status: int, reason: str) -> None:
        self.ended.append((session, status, reason))


class Host:
    """A server with everything around it."""

    def __init__(
        self, home: Path, *, options: Options = Options(), greeting: Callable[[], Greeting] = Greeting
    ) -> None:
        self.context = Context(home)
        self.reports = Reports()
        self.server = SshServer(
            self.context,
            SystemClock(),
            host_key=self._host_key,
            home=str(home),
            options=options,
            greeting=greeting,
            reports=self.reports,
        )
        self._serving: set[asyncio.Task[None]] = set()

    async def _host_key(self) -> bytes:
        return await asyncio.to_thread(host_key)

    def connect(self) -> socket.socket:
        """The client's end of a new connection."""
        ours, theirs = socket.socketpair()
        self.accept(ours)
        return theirs

    def accept(self, sock: socket.socket) -> None:
        """Serve the client at the other end of `sock`."""
        self._serving.add(asyncio.create_task(self.server.serve(SocketStream(sock))))

    def connections(self) -> list[Any]:
        """asyncssh's side of them."""
        return [transport.get_protocol() for transport in self.server._connections]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[asyncssh.SSHClientConnection]:
        connection = await asyncssh.connect(
            "agent", sock=self.connect(), known_hosts=None, username="anybody", config=None, encoding=None
        )
        async with connection:
            yield connection

    async def aclose(self) -> None:
        await self.server.aclose()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        for task in self._serving:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


@asynccontextmanager
async def hosting(
    home: Path, *, options: Options = Options(), greeting: Callable[[], Greeting] = Greeting
) -> AsyncIterator[Host]:
    """A server, closed at the end."""
    host = Host(home, options=options, greeting=greeting)
    try:
        yield host
    finally:
        await host.aclose()


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Wait for something that happens in another process."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(host: Host, path: Path) -> AsyncIterator[None]:
    """The server at a Unix socket, for clients that are programs of their own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(100)
    listener.setblocking(False)

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            host.accept(accepted)

    accepting = asyncio.create_task(accept())
    try:
        yield
    finally:
        accepting.cancel()
        await asyncio.wait({accepting})
        listener.close()


class PlainClient:
    """A client that sends channel messages as it is told, on asyncssh's transport."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.opened = 0
        self.refused: list[tuple[int, str]] = []

    async def __aenter__(self) -> PlainClient:
        self._context = self._host.client()
        self._connection = await self._context.__aenter__()
        handlers: dict[int, Any] = {
            MSG_CHANNEL_OPEN_CONFIRMATION: self._confirmed,
            MSG_CHANNEL_OPEN_FAILURE: self._failed,
        }
        # Of this connection alone; what its channels are told otherwise is of no interest.
        self._connection._packet_handlers = {**type(self._connection)._packet_handlers, **handlers}
        return self

    async def __aexit__(self, *args: object) -> None:
        self._connection.abort()
        await self._context.__aexit__(None, None, None)

    def open_session(self, number: int) -> None:
        self._send(MSG_CHANNEL_OPEN, String("session"), UInt32(number), UInt32(1000), UInt32(32768))

    def request(self, number: int, name: bytes, payload: bytes) -> None:
        self._send(MSG_CHANNEL_REQUEST, UInt32(number), String(name), Boolean(False), payload)

    def widen(self, number: int, window: int) -> None:
        self._send(MSG_CHANNEL_WINDOW_ADJUST, UInt32(number), UInt32(window))

    def stop_reading(self) -> None:
        transport: Any = self._connection._transport
        transport.pause_reading()

    def _send(self, kind: int, *parts: bytes) -> None:
        self._connection.send_packet(kind, *parts)

    def _confirmed(self, _connection: object, _kind: int, _id: int, _packet: SSHPacket) -> None:
        self.opened += 1

    def _failed(self, _connection: object, _kind: int, _id: int, packet: SSHPacket) -> None:
        packet.get_uint32()
        self.refused.append((packet.get_uint32(), packet.get_string().decode()))
