"""A local server that costs a socket until somebody connects: aiohttp's server half is 2.3 MB and 25 ms."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from agent.ops.address import LocalAddress, short_path

if TYPE_CHECKING:
    from aiohttp import web

MAX_CONNECTIONS: Final = 64
"""More are refused: whoever may connect must not use up the agent's descriptors."""
BACKLOG: Final = 16
CLOSE_LIMIT: Final = 1.0
"""Seconds that requests have to end when the server closes."""


class ListenError(Exception):
    """The address cannot be listened on; the text says why and what to do."""


class LocalServer:
    """Listens at `address`. `make_app` is called, and `agent.ops.app` imported, when somebody first connects."""

    def __init__(self, name: str, address: LocalAddress, make_app: Callable[[], web.Application]) -> None:
        self.name = name
        self.address = address
        self._make_app = make_app
        self._socket: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The TCP port that it has; 0 for a Unix socket."""
        assert self._socket is not None, "not open"
        return 0 if self.address.path is not None else int(self._socket.getsockname()[1])

    def open(self) -> None:
        """Listen from now on. Raises `ListenError`. Touches the file system for a Unix socket, for a moment."""
        try:
            self._socket = _unix(self.address) if self.address.path is not None else _tcp(self.address)
        except OSError as error:
            raise ListenError(
                f"the {self.name} server cannot listen on {self.address}: {error.strerror or error}; the agent runs "
                "without it. Name another address, or none, in the agent's configuration"
            ) from error
        asyncio.get_running_loop().add_reader(self._socket, self._first)

    async def aclose(self) -> None:
        """Stop, after the requests that are being answered. Idempotent."""
        if self._socket is None:
            return
        sock, self._socket = self._socket, None
        if self._starting is None:
            asyncio.get_running_loop().remove_reader(sock)
        else:
            await asyncio.wait({self._starting})
            if self._server is not None:
                self._server.close()
            if self._runner is not None:
                await self._runner.cleanup()
        if self.address.path is not None:
            with contextlib.suppress(OSError):  # somebody removed it, or the whole directory
                os.unlink(self.address.path)
        sock.close()

    def _first(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket)
        self._starting = asyncio.create_task(self._start(self._socket), name=f"start the {self.name} server")

    async def _start(self, sock: socket.socket) -> None:
        await asyncio.to_thread(importlib.import_module, "agent.ops.app")
        from agent.ops.app import make_runner

        self._runner = runner = make_runner(self._make_app(), CLOSE_LIMIT)
        await runner.setup()
        server = runner.server
        assert server is not None

        def protocol() -> asyncio.BaseProtocol:
            return server() if len(server.connections) < MAX_CONNECTIONS else _Refuse()

        self._server = await asyncio.get_running_loop().create_server(protocol, sock=sock, backlog=BACKLOG)


class _Refuse(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.abort()


def _tcp(address: LocalAddress) -> socket.socket:
    host = "127.0.0.1" if address.host == "localhost" else address.host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setblocking(False)
        sock.bind((host, address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _unix(address: LocalAddress) -> socket.socket:
    """Listens with mode 0600. Replaces a socket that nobody listens on any more, and nothing else."""
    path = address.path
    assert path is not None
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_directory(os.stat(path.parent))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with short_path(path) as name:
            _remove_dead(name)
            sock.bind(name)
            os.chmod(name, 0o600)  # before `listen`: until then nobody can connect
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _check_directory(status: os.stat_result) -> None:
    """Nobody else may put a socket of his own in the place of ours."""
    if status.st_uid not in (os.geteuid(), 0):
        raise OSError(errno.EPERM, f"its directory belongs to user {status.st_uid}")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise OSError(errno.EPERM, "others may write to its directory")


def _remove_dead(name: str) -> None:
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "there is something else than a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(name) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
    os.unlink(name)
