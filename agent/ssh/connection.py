"""One client's SSH connection: what it may do, its channels, its forwarded ports (terminal-ssh-http.md §3.3, §3.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncssh
from asyncssh.forward import SSHForwarder
from asyncssh.packet import SSHPacket

from agent.ssh.channel import SessionChannel, TcpChannel, UnixChannel
from agent.ssh.child import Child
from agent.ssh.forwarding import MAX_LISTENERS, Forwarded, dial_tcp, dial_unix, listen_tcp
from agent.ssh.session import Services, Session
from agent.ssh.x11 import Display, X11Error, X11Request

MAX_CHANNELS: Final = 1024
"""Of one connection, of every kind."""


class Connection(asyncssh.SSHServerConnection):
    """Between a transport and its channels."""

    def __init__(self, options: asyncssh.SSHServerConnectionOptions) -> None:
        super().__init__(asyncio.get_running_loop(), options)
        self.full = False
        """Whether the transport has enough to send for now."""

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for channel in list(self._channels.values()):
            if self.full:
                break
            channel._flush_send_buf()

    def create_server_channel(
        self, encoding: str | None = "", errors: str = "", window: int = 0, max_pktsize: int = 0
    ) -> SessionChannel:
        self._check_room()
        size = max_pktsize or self._max_pktsize
        self._update_recv_pktlen(size)
        # Bytes both ways, and no editing of lines.
        return SessionChannel(self, self._loop, True, False, False, 0, 0, None, "strict", window or self._window, size)

    def create_tcp_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0, max_pktsize: int = 0
    ) -> TcpChannel:
        self._check_room()
        return TcpChannel(self, self._loop, None, errors, window or self._window, max_pktsize or self._max_pktsize)

    def create_unix_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0, max_pktsize: int = 0
    ) -> UnixChannel:
        self._check_room()
        return UnixChannel(self, self._loop, None, errors, window or self._window, max_pktsize or self._max_pktsize)

    @property
    def authenticated(self) -> bool:
        return bool(self._auth_complete)

    @property
    def peer(self) -> str:
        """The client's address."""
        return str(self._peer_addr)

    @property
    def may_listen(self) -> bool:
        """Whether one more port or path may be listened at."""
        return len(self._local_listeners) < MAX_LISTENERS

    def listener(self, path: str) -> asyncssh.SSHListener | None:
        """The one that is there for a path."""
        return self._local_listeners.get(path)

    def _process_cancel_tcpip_forward_global_request(self, packet: SSHPacket) -> None:
        """asyncssh ends the connection when there is no such listener."""
        host = packet.get_string().decode("utf-8", "replace").lower()
        self._cancel_listener((host, packet.get_uint32()))

    def _process_cancel_streamlocal_forward_at_openssh_dot_com_global_request(self, packet: SSHPacket) -> None:
        self._cancel_listener(packet.get_string().decode("utf-8", "replace"))

    def _cancel_listener(self, key: tuple[str, int] | str) -> None:
        listener = self._local_listeners.pop(key, None)
        if listener is not None:
            listener.close()
        self._report_global_response(True)

    def _check_room(self) -> None:
        if len(self._channels) >= MAX_CHANNELS:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"a connection has at most {MAX_CHANNELS} channels"
            )

    def _force_close(self, exc: Exception | None) -> None:
        """As asyncssh does, but what was said last reaches the client."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._loop.call_soon(transport.close)
            self._loop.call_soon(self._cleanup, exc)


class Owner(asyncssh.SSHServer):
    """What the connection asks about its client. Whoever reached it may do everything that is not switched off."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._connection: Connection
        self._terminals: set[Child] = set()
        self._displays: list[Display] = []

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Connection)
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        for child in self._terminals:
            child.kill()
        for display in self._displays:
            self._services.displays.close(display)
        if not self._connection.authenticated:
            self._services.counters.failed_connections += 1

    def begin_auth(self, username: str) -> bool:
        return False

    # ---- sessions

    def session_requested(self) -> tuple[SessionChannel, Session]:
        channel = self._connection.create_server_channel()
        return channel, Session(self._services, self, channel, self._connection.peer)

    def child_started(self, child: Child, *, terminal: bool) -> None:
        """What runs in a terminal ends with the connection."""
        self._services.child_started(child, terminal=terminal)
        if terminal:
            self._terminals.add(child)

    def child_ended(self, child: Child) -> None:
        self._services.child_ended(child)
        self._terminals.discard(child)

    async def open_display(self, request: X11Request, evict: Callable[[], None]) -> Display:
        """It is there as long as the connection. Raises `X11Error`."""
        display = await self._services.displays.open(self._connection, request, evict)
        if self._connection.is_closed():
            self._services.displays.close(display)
            raise X11Error("listen", "the client has gone")
        self._displays.append(display)
        return display

    # ---- forwarding

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        if self._services.options.block_local_forwarding:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "port forwarding is disabled")
        return self._forward(dest_host, dest_port, orig_host)

    def unix_connection_requested(self, dest_path: str) -> Any:
        if self._services.options.block_local_forwarding:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "local port forwarding is disabled"
            )
        return self._forward_unix(dest_path)

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener | bool:
        if self._services.options.block_remote_forwarding or not self._connection.may_listen:
            return False
        return await listen_tcp(self._connection, listen_host, listen_port)

    async def unix_server_requested(self, listen_path: str) -> asyncssh.SSHListener | bool:
        if self._services.options.block_remote_forwarding:
            return False
        if (listener := self._connection.listener(listen_path)) is not None:
            return listener
        if not self._connection.may_listen:
            return False
        return await self._services.sockets.listen(self._connection, listen_path)

    async def _forward(self, host: str, port: int, origin: str) -> SSHForwarder:
        looking = self._services.looks.look(port)
        forwarded = Forwarded(await dial_tcp(host, port, self._services.clock))

        def looked(found: asyncio.Task[bool]) -> None:
            # What goes wrong with a look is worth a connection that is not counted, no more.
            if not found.cancelled() and found.exception() is None and found.result():
                forwarded.count(lambda: self._services.jetbrains(origin))

        looking.add_done_callback(looked)
        return forwarded

    async def _forward_unix(self, path: str) -> SSHForwarder:
        return Forwarded(await dial_unix(path, self._services.clock))
