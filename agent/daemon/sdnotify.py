"""Telling systemd how things stand (sd_notify(3)), where it asked for it with `NOTIFY_SOCKET`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from agent.clock import Clock
from agent.daemon.logfile import get_logger

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""They are for this process only: a command that has them could speak for the agent."""


class Notifier:
    """Sends state lines; does nothing without `NOTIFY_SOCKET`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" stands for the abstract name space.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._period = _watchdog_period(environment)
        self._failed = False

    async def feed_watchdog(self, clock: Clock) -> None:
        """Tell the watchdog, if there is one, that the event loop turns, for as long as it does."""
        if self._period is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await clock.sleep(self._period)

    def ready(self) -> None:
        """The agent runs. It may not be connected yet: a control plane that is away must not fail the unit."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The shutdown has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._failed:
                get_logger("agent.systemd").warning("systemd cannot be notified", socket=self._address, error=error)
            self._failed = True


def _watchdog_period(environment: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life: a third of what systemd allows (sd_watchdog_enabled(3)); None: no watchdog."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for a process that started this one
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 3e6 if text.isascii() and text.isdigit() and int(text) > 0 else None
