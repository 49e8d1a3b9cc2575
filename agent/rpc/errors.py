"""What can go wrong with a call or a connection, one type per meaning."""

from __future__ import annotations

from agent.protocol.drpc import ErrorCode


class CallError(Exception):
    """Base of this room's errors."""


class TransportError(CallError):
    """The byte stream under a connection broke."""


class ConnectionLostError(CallError):
    """The connection ended, or an answer did not come in time; the cause is chained where there is one."""


class StreamBrokenError(CallError):
    """This one stream was reset, ended early, or one side would break a rule on it; the connection goes on."""


class RpcError(CallError):
    """The peer answered with an error. A handler raises it to answer with one."""

    def __init__(self, text: str, code: int = ErrorCode.UNSPECIFIED) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class UnsupportedError(RpcError):
    """The server does not know the method, or is older than it (agent-api.md §7.2)."""

    def __init__(self, text: str) -> None:
        super().__init__(text, ErrorCode.UNIMPLEMENTED)
