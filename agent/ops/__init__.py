"""How people and programs on the same machine watch and steer the agent: local HTTP (daemon.md §1.9)."""

from agent.ops.address import AddressError, LocalAddress, parse_address
from agent.ops.listener import ListenError, LocalServer
from agent.ops.views import LOG_LEVELS, Drained, Operations

__all__ = [
    "LOG_LEVELS",
    "AddressError",
    "Drained",
    "ListenError",
    "LocalAddress",
    "LocalServer",
    "Operations",
    "parse_address",
]
