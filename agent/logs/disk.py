"""Is the state directory worth trying? One place decides, and warns once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_FIRST_RETRY, _LAST_RETRY = 30.0, 3600.0


class Logger(Protocol):
    """What this room asks of a logger; structlog's fit."""

    def info(self, event: str, **values: Any) -> Any: ...

    def warning(self, event: str, **values: Any) -> Any: ...

    def exception(self, event: str, **values: Any) -> Any: ...


class LazyLogger:
    """structlog's logger `agent.logs`, loaded when there is something to say (start-up time)."""

    def info(self, event: str, **values: Any) -> None:
        self._logger().info(event, **values)

    def warning(self, event: str, **values: Any) -> None:
        self._logger().warning(event, **values)

    def exception(self, event: str, **values: Any) -> None:
        self._logger().exception(event, **values)

    def _logger(self) -> Any:
        import structlog

        return structlog.get_logger("agent.logs")


class Disk:
    """Files under one directory, and what to do when they cannot be written.

    The first failure is said once; from then on everything stays in memory, and the disk is tried again after 30 s,
    1 min, 2 min … 1 h. Thread-confined, like everything that writes.
    """

    def __init__(self, directory: Path | None, now: Callable[[], float], logger: Logger) -> None:
        self.directory = directory
        self._now = now
        self._logger = logger
        self._delay = _FIRST_RETRY
        self._try_again = 0.0
        self.failing = False

    @property
    def usable(self) -> bool:
        return self.directory is not None and not (self.failing and self._now() < self._try_again)

    def failed(self, error: OSError) -> None:
        """A write failed; nothing is tried for a while."""
        if self.failing and not self.usable:
            return  # an acknowledgement, say: that is written whenever it comes
        if not self.failing:
            self._logger.warning(
                "Log lines cannot be kept on disk and stay in memory (at most 1 MiB, lost when the agent ends). "
                "Free space there or make it writable.",
                directory=str(self.directory),
                error=error.strerror or str(error),
            )
        self.failing = True
        self._try_again = self._now() + self._delay
        self._delay = min(self._delay * 2, _LAST_RETRY)

    def worked(self) -> None:
        """A write succeeded."""
        if self.failing:
            self.failing = False
            self._logger.info("Log lines are kept on disk again.", directory=str(self.directory))

    def damaged(self, path: Path, problem: str) -> None:
        """Something on disk cannot be read and is left out."""
        self._logger.warning("A part of the log spool is damaged; its lines are lost.", file=str(path), problem=problem)
