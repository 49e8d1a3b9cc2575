"""News of the machine's network interfaces: a laptop that wakes elsewhere, a cable, a VPN (tailnet.md §6.4, §6.5)."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from agent.clock import Clock

CALM: Final = 0.25
"""Seconds after the first news until they are told: one change comes as many messages."""
_GROUPS: Final = 0x1 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR: see rtnetlink(7)."""


class Links:
    """What the kernel says about links and addresses. Close it when it is no longer needed."""

    def __init__(self, clock: Clock) -> None:
        """Raises `OSError` where the kernel tells nothing: then only looking at the interfaces helps."""
        self._clock = clock
        self._changed = asyncio.Event()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, _GROUPS))
        except OSError:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    async def changed(self) -> None:
        """Wait for news. Whether they matter is to be seen: addresses that are only renewed are news, too."""
        await self._changed.wait()
        await self._clock.sleep(CALM)
        self._changed.clear()

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _readable(self) -> None:
        try:
            self._socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            pass  # ENOBUFS: there was more than fits, which is news all the more
        self._changed.set()
