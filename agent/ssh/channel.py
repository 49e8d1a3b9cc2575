"""The channels of a connection: asyncssh's, with bounds, and with requests answered as terminal-ssh-http.md §3.5 says.

The methods that are overridden here are asyncssh's own; its version is pinned for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh.packet import SSHPacket

from agent.ssh.environment import RequestedVariables
from agent.ssh.x11 import X11Request

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel

    _Channel = SSHChannel[bytes]
    _ServerChannel = asyncssh.SSHServerChannel[bytes]
    _TcpChannel = asyncssh.SSHTCPChannel[bytes]
    _UnixChannel = asyncssh.SSHUNIXChannel[bytes]
else:
    _Channel = object
    _ServerChannel = asyncssh.SSHServerChannel
    _TcpChannel = asyncssh.SSHTCPChannel
    _UnixChannel = asyncssh.SSHUNIXChannel


class BoundedSending(_Channel):
    """Sends nothing while the connection is full: what waits stays in the channel, whose session is then told to pause.

    asyncssh bounds what is under way by the client's window alone, and that may be 4 GB.
    """

    def _flush_send_buf(self) -> None:
        connection: Any = self._conn
        if connection is not None and connection.full and self._send_buf:
            self._pause_resume_writing()
        else:
            super()._flush_send_buf()


class TcpChannel(BoundedSending, _TcpChannel):
    """A forwarded TCP connection."""


class UnixChannel(BoundedSending, _UnixChannel):
    """A forwarded connection of a Unix socket."""


class SessionChannel(BoundedSending, _ServerChannel):
    """A channel of a shell, a command or SFTP."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.variables = RequestedVariables()
        self.x11: X11Request | None = None

    @property
    def started(self) -> bool:
        return bool(self._session_started)

    @property
    def has_terminal(self) -> bool:
        return self._term_type is not None

    def _process_env_request(self, packet: SSHPacket) -> bool:
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        return not self.started and self.variables.add(name, value)

    def _process_pty_req_request(self, packet: SSHPacket) -> bool:
        return not self.started and super()._process_pty_req_request(packet)

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        command = packet.get_string().decode("utf-8", "surrogateescape")
        packet.check_end()
        return self._start_session(command=command)

    def _process_window_change_request(self, packet: SSHPacket) -> bool:
        return self.has_terminal and super()._process_window_change_request(packet)

    def _process_keepalive_at_openssh_dot_com_request(self, packet: SSHPacket) -> bool:
        packet.check_end()
        return True

    def _process_x11_req_request(self, packet: SSHPacket) -> bool:
        single = packet.get_boolean()
        protocol, cookie = packet.get_string(), packet.get_string()
        screen = packet.get_uint32()
        packet.check_end()
        if self.started or self.x11 is not None:
            return False
        self.x11 = X11Request.parse(single, protocol, cookie, screen)
        return self.x11 is not None
