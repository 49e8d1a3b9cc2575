"""TCP for the inner path of the tailnet, sans-I/O (tailnet.md §8.3, §8.4)."""

from agent.protocol.tcp.connection import Connection
from agent.protocol.tcp.limits import (
    Closed,
    Connected,
    ConnectionClosedTcpError,
    ConnectionRefusedTcpError,
    ConnectionResetTcpError,
    ConnectionTimeoutTcpError,
    Counters,
    Event,
    Incoming,
    Limits,
    NoFreePortError,
    PeerClosed,
    Readable,
    StackCounters,
    State,
    TcpError,
    Writable,
)
from agent.protocol.tcp.stack import MTU, TcpStack

__all__ = [
    "MTU",
    "Closed",
    "Connected",
    "Connection",
    "ConnectionClosedTcpError",
    "ConnectionRefusedTcpError",
    "ConnectionResetTcpError",
    "ConnectionTimeoutTcpError",
    "Counters",
    "Event",
    "Incoming",
    "Limits",
    "NoFreePortError",
    "PeerClosed",
    "Readable",
    "StackCounters",
    "State",
    "TcpError",
    "TcpStack",
    "Writable",
]
