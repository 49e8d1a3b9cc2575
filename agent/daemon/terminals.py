"""The terminals of the workspace, for the life of the process (terminal-ssh-http.md §1).

The service is imported when there is a state directory: before, it would hold up the start of the process.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from agent.clock import Clock
from agent.daemon.environment import CommandEnvironment

if TYPE_CHECKING:
    from agent.tailnet.streams import TailnetStream
    from agent.terminal import TerminalService
    from agent.terminal.counters import ConnectionReports

PORT = 2
"""Where the tailnet has this service."""


class Terminals:
    """Serves connections; those that come before `open` wait.

    A terminal that nobody looks at goes on for `idle` seconds; `history` bytes of its output are kept.
    """

    def __init__(
        self,
        context: CommandEnvironment,
        clock: Clock,
        *,
        idle: float,
        history: int,
        reports: ConnectionReports | None = None,
    ) -> None:
        self._context = context
        self._clock = clock
        self._idle = idle
        self._history = history
        self._reports = reports
        self._opening: asyncio.Task[TerminalService] | None = None
        self._service: TerminalService | None = None
        self._begun = asyncio.Event()

    def open(self, directory: Path | None) -> None:
        """The state directory is known, or that there is none. Call it once."""
        self._opening = asyncio.create_task(self._open(directory), name="open terminals")
        self._begun.set()

    @property
    def service(self) -> TerminalService | None:
        """None until the state directory is known and it is loaded."""
        return self._service

    @property
    def viewers(self) -> int:
        """Connections that are being served."""
        return self._service.counters.active if self._service is not None else 0

    async def serve(self, stream: TailnetStream) -> None:
        """One connection to port 2."""
        await self._begun.wait()
        assert self._opening is not None
        service = await asyncio.shield(self._opening)
        await service.serve(stream)

    async def aclose(self) -> None:
        """End every terminal and its connections. Idempotent."""
        if self._opening is not None:
            service = await asyncio.shield(self._opening)
            await service.aclose()

    async def leave(self) -> None:
        """Let go of the terminals for a later agent, as far as that is possible. Idempotent."""
        if self._opening is not None:
            service = await asyncio.shield(self._opening)
            await service.leave()

    async def _open(self, directory: Path | None) -> TerminalService:
        await asyncio.to_thread(importlib.import_module, "agent.terminal")
        from agent.terminal import Limits, TerminalService

        limits = Limits(idle=self._idle, history=self._history)
        self._service = service = TerminalService(self._context, self._clock, limits=limits, reports=self._reports)
        await service.open(directory)
        return service
