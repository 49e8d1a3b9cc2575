"""The SSH server of a workspace (terminal-ssh-http.md §3). It serves streams; nothing listens on the machine itself."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol
from uuid import uuid4

import asyncssh

from agent.clock import Clock, wait_for
from agent.ssh.child import Child
from agent.ssh.command import CommandContext
from agent.ssh.connection import Connection, Owner
from agent.ssh.counters import Counters, Kind, NoReports, SessionReports
from agent.ssh.forwarding import UnixSockets
from agent.ssh.greeting import Greeting
from agent.ssh.jetbrains import PortLooks
from agent.ssh.options import Options
from agent.ssh.session import Session
from agent.ssh.x11 import Displays
from agent.tailnet.transport import ByteStream, StreamTransport

CLOSE_LIMIT: Final = 4.0
"""Seconds that sessions have to end when the agent does."""
LOGIN_LIMIT: Final = 120.0
KEEPALIVES: Final = 3
# WireGuard is around every connection, so SSH's own algorithms protect little. What is weak is left out all the same,
# but for what old clients have nothing else for: NIST's curves, ssh-rsa, and MACs of the plain text.
KEY_EXCHANGES: Final = "-*-sha1,*group-exchange*,rsa*,*@ssh.com,mlkem*nistp*,ecdh-sha2-1.*"
MACS: Final = "-*sha1*,*md5*,umac-64*,*@ssh.com"
HOST_KEY_ALGORITHMS: Final = (b"rsa-sha2-256", b"rsa-sha2-512", b"ssh-rsa")


class Stream(ByteStream, Protocol):
    """A connection of the tailnet."""

    @property
    def peer(self) -> tuple[bytes, int]:
        """Address (16 bytes) and port of the client."""


class SshServer:
    """Serves connections to ports 1 and 22. `host_key` gives the private key in PEM, `home` is the user's directory."""

    def __init__(
        self,
        context: CommandContext,
        clock: Clock,
        *,
        host_key: Callable[[], Awaitable[bytes]],
        home: str,
        options: Options = Options(),
        greeting: Callable[[], Greeting] = Greeting,
        reports: SessionReports | None = None,
    ) -> None:
        self.context = context
        self.counters = Counters()
        self.reports = reports or NoReports()
        self.greeting = greeting
        self.options = options
        self.clock = clock
        self.displays = Displays(home)
        self.sockets = UnixSockets()
        self.looks = PortLooks(clock)
        self._host_key = host_key
        self._connection_options: asyncio.Task[asyncssh.SSHServerConnectionOptions] | None = None
        self._connections: set[StreamTransport] = set()
        self._sessions: dict[asyncio.Task[None], Session] = {}
        self._children: dict[Child, bool] = {}
        self._closed = False
        asyncssh.set_log_level(logging.WARNING)  # it has a line for every channel, and some with what is secret

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    async def serve(self, stream: Stream) -> None:
        """One connection, until it ends; closes the stream."""
        if self._connection_options is None:
            self._connection_options = asyncio.create_task(self._make_options(), name="SSH options")
        try:
            options = await asyncio.shield(self._connection_options)
            if self._closed:
                return
            await self._serve(stream, Connection(options))
        finally:
            stream.close()

    async def aclose(self) -> None:
        """Close every session without an exit status, hang up commands, and wait some seconds for them. Idempotent."""
        self._closed = True
        if self._connection_options is not None:
            self._connection_options.cancel()
        for session in list(self._sessions.values()):
            session.close()
        for transport in list(self._connections):
            connection = transport.get_protocol()
            assert isinstance(connection, Connection)
            connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the agent shuts down")
        for child, terminal in self._children.items():
            if not terminal:
                child.hang_up()
        ending = [*self._sessions, *(asyncio.create_task(t.wait_closed()) for t in self._connections)]
        if ending:
            with contextlib.suppress(TimeoutError):
                await wait_for(self.clock, asyncio.wait(ending), CLOSE_LIMIT)
        for transport in list(self._connections):
            transport.abort()
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    # ---- what sessions need

    def run(self, work: asyncio.Task[None], session: Session) -> None:
        self._sessions[work] = session
        work.add_done_callback(self._session_ended)

    def child_started(self, child: Child, *, terminal: bool) -> None:
        self._children[child] = terminal

    def child_ended(self, child: Child) -> None:
        self._children.pop(child, None)

    def jetbrains(self, origin: str) -> Callable[[], None]:
        session = uuid4()
        self.counters.live[Kind.JETBRAINS] += 1
        self.reports.connected(session, Kind.JETBRAINS, origin)

        def ended() -> None:
            self.counters.live[Kind.JETBRAINS] -= 1
            self.reports.disconnected(session, 0, "normal close")

        return ended

    def _session_ended(self, task: asyncio.Task[None]) -> None:
        del self._sessions[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "an SSH session failed", "exception": error, "task": task}
            )

    # ---- connections

    async def _serve(self, stream: Stream, connection: Connection) -> None:
        address, port = stream.peer
        extra = {"peername": (str(ipaddress.IPv6Address(address)), port)}
        transport = StreamTransport(stream, connection, self.clock, extra)
        self._connections.add(transport)
        try:
            limit = self.options.max_timeout
            if 0 < limit < KEEPALIVES:
                with contextlib.suppress(TimeoutError):
                    await wait_for(self.clock, transport.wait_closed(), limit)
            else:
                await transport.wait_closed()
        finally:
            self._connections.discard(transport)
            transport.abort()
        await transport.wait_closed()

    async def _make_options(self) -> asyncssh.SSHServerConnectionOptions:
        key = asyncssh.import_private_key(await self._host_key())
        keepalive = self.options.max_timeout / KEEPALIVES if self.options.max_timeout >= KEEPALIVES else 0
        make = partial(
            asyncssh.SSHServerConnectionOptions,
            config=None,
            server_version="WorkspaceAgent",
            kex_algs=KEY_EXCHANGES,
            mac_algs=MACS,
            compression_algs=["none"],  # who compresses can make a little data very large
            server_factory=lambda: Owner(self),
            server_host_keys=[key],
            gss_host=None,
            line_editor=False,
            encoding=None,
            login_timeout=LOGIN_LIMIT,
            keepalive_interval=keepalive,
            keepalive_count_max=KEEPALIVES,
        )
        made = await asyncio.to_thread(make)
        for name in set(made.server_host_keys) - set(HOST_KEY_ALGORITHMS):
            del made.server_host_keys[name]
        return made
