"""An SSH server and asyncssh's own client, joined by a socket pair: no port is opened."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncssh

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
