"""Connections that a client carries into the workspace, and out of it (terminal-ssh-http.md §3.10)."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.forward import SSHForwarder, SSHLocalPathForwarder
from asyncssh.listener import SSHForwardListener, create_tcp_forward_listener

from agent.clock import Clock, wait_for

if TYPE_CHECKING:
    from agent.ssh.connection import Connection

DIAL_LIMIT: Final = 60.0
"""Seconds to connect to what a client asks for."""
MAX_LISTENERS: Final = 256
"""Of one connection, TCP and Unix together."""


class Forwarded(SSHForwarder):
    """The channel's side of a connection that was made for a client."""

    def __init__(self, peer: SSHForwarder) -> None:
        super().__init__(peer)
        self._lost = False
        self._ended: Callable[[], None] | None = None

    def count(self, begin: Callable[[], Callable[[], None]]) -> None:
        """Count the connection, unless it is over: `begin` returns what to call when it ends."""
        if not self._lost:
            self._ended = begin()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


async def dial_tcp(host: str, port: int, clock: Clock) -> SSHForwarder:
    """Connect to `host`, a name that the workspace knows or an address. Raises `ChannelOpenError`."""
    loop = asyncio.get_running_loop()
    try:
        _, peer = await wait_for(clock, loop.create_connection(SSHForwarder, host, port), DIAL_LIMIT)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _failed(f"dial {host}:{port}", error) from error
    return peer


async def dial_unix(path: str, clock: Clock) -> SSHForwarder:
    """Connect to a Unix socket. Raises `ChannelOpenError`."""
    loop = asyncio.get_running_loop()
    try:
        _, peer = await wait_for(clock, loop.create_unix_connection(SSHForwarder, path), DIAL_LIMIT)
    except (OSError, ValueError) as error:
        raise _failed(f'dial unix socket "{path}"', error) from error
    return peer


async def listen_tcp(connection: Connection, host: str, port: int) -> asyncssh.SSHListener:
    """Listen where the client says: "" is every address, and `localhost` 127.0.0.1. Raises `OSError`."""
    bound = port

    async def connect(factory: Any, origin_host: str, origin_port: int) -> Any:
        return await connection.create_connection(factory, host, bound, origin_host, origin_port)

    address = "127.0.0.1" if host == "localhost" else host
    listener = await create_tcp_forward_listener(connection, asyncio.get_running_loop(), connect, address, port)
    bound = listener.get_port()
    return listener


class UnixSockets:
    """Sockets at paths that clients choose. Each is removed when its listener closes, and before the next one at any
    path is made: which of two sockets at a path is meant cannot be told from the path."""

    def __init__(self) -> None:
        self._removing: set[asyncio.Future[None]] = set()

    async def listen(self, connection: Connection, path: str) -> asyncssh.SSHListener:
        """Listen at `path`, in place of a file or socket that is there. Raises `OSError`."""

        async def connect(factory: Any) -> Any:
            return await connection.create_unix_connection(factory, path)

        while self._removing:
            await asyncio.wait(self._removing)
        listening = await asyncio.to_thread(_bind, path)
        try:
            server = await asyncio.get_running_loop().create_unix_server(
                lambda: SSHLocalPathForwarder(connection, connect), sock=listening
            )
        except BaseException:
            listening.close()
            raise
        return _UnixListener(connection, server, path, self._remove)

    def _remove(self, path: str) -> None:
        removing = asyncio.get_running_loop().run_in_executor(None, _unlink, path)
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)


class _UnixListener(SSHForwardListener):
    def __init__(
        self, connection: Connection, server: asyncio.AbstractServer, path: str, closed: Callable[[str], None]
    ) -> None:
        super().__init__(connection, [server], path)
        self._path = path
        self._closed = closed

    def close(self) -> None:
        if self._conn is not None:
            super().close()
            self._closed(self._path)


def _bind(path: str) -> socket.socket:
    """Called in a thread."""
    directory = os.path.dirname(path)
    if directory:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass  # there is nothing in the way
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        os.chmod(path, 0o600)  # before it listens: nobody else gets in
    except BaseException:
        listening.close()
        raise
    return listening


def _unlink(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # somebody else has removed it, or does not let us: either way it is no longer ours


def _failed(what: str, error: Exception) -> asyncssh.ChannelOpenError:
    reason = f"no answer within {DIAL_LIMIT:g} s" if isinstance(error, TimeoutError) and not error.args else str(error)
    return asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"{what}: {reason}")
