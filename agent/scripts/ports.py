"""What this room needs of others. `agent.logs` and `agent.daemon` fit these shapes without being imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from agent.api.proto import agent_pb2 as pb


class Capture(Protocol):
    """The capture of one run's output."""

    async def wait_eof(self) -> None:
        """Return when both pipes have ended and all of it has been taken in."""

    def note(self, text: str) -> None:
        """Add a line of the agent's own, level ERROR, also to the log file."""

    async def finish(self) -> None:
        """Stop reading, close the descriptors, flush partial lines, forget what was kept for a later process.

        Takes a bounded time; calling it again does nothing.
        """


class Captures(Protocol):
    """Who reads the scripts' output."""

    def start(
        self, run_id: UUID, source_id: UUID, log_fd: int | None, stdout_fd: int | None, stderr_fd: int | None
    ) -> Capture:
        """Take over the descriptors (they are closed by the capture) and read; never raises for a bad disk.

        A `run_id` that a former process began goes on from what that one kept. `None` for a pipe means that it ended
        and nothing can be read of it any more; `None` for `log_fd` means that there is no log file.
        """

    def note(self, source_id: UUID, level: int, text: str) -> None:
        """A line of the agent's own for a log source; `level` is a value of `pb.Log.Level`."""


class CommandContext(Protocol):
    """What every command of the workspace runs with. All of it is called in a thread and may raise."""

    def environment(self) -> dict[str, str]:
        """daemon.md §2.4 steps 1-7."""

    def shell(self) -> str:
        """The user's login shell."""

    def directory(self) -> str:
        """The working directory."""


ScriptCompleted = Callable[[pb.Timing], None]
"""Takes the timing of a run (agent-api.md §11.6); must not block."""
