"""Who talks to whom."""

from __future__ import annotations

import ipaddress


class Endpoints:
    """Addresses and ports of a connection, as they stand in its packets."""

    __slots__ = ("_flow", "key")

    def __init__(self, key: bytes, flow: bytes) -> None:
        """36 bytes each, source first: `key` as in an incoming packet, `flow` as in an outgoing one."""
        self.key = key
        self._flow = flow

    def describe(self) -> str:
        """Both ends as text."""
        local = f"[{ipaddress.IPv6Address(self.local_address)}]:{self.local_port}"
        return f"{local} - [{ipaddress.IPv6Address(self.remote_address)}]:{self.remote_port}"

    @property
    def local_address(self) -> bytes:
        """16 bytes."""
        return self._flow[:16]

    @property
    def remote_address(self) -> bytes:
        """16 bytes."""
        return self._flow[16:32]

    @property
    def local_port(self) -> int:
        """The port at our end."""
        return int.from_bytes(self._flow[32:34], "big")

    @property
    def remote_port(self) -> int:
        """The port at the peer."""
        return int.from_bytes(self._flow[34:36], "big")
