"""What the local servers show and do, as the rest of the agent must offer it; nothing here may hold a secret."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agent.metrics import Metric

if TYPE_CHECKING:
    from aiohttp import web

LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Drained:
    """How a shutdown ended: names of stages that did not finish, and what the server has not been told, by kind."""

    unfinished: Sequence[str]
    unsent: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Operations:
    """Everything that is asked of the agent, each when it is asked for. All are called on the loop."""

    metrics: Callable[[], Awaitable[Iterable[Metric]]]
    status: Callable[[], Mapping[str, Any]]
    """How things stand, for JSON."""
    not_ready: Callable[[], str]
    """Why the workspace is not ready; empty when it is."""
    stacks: Callable[[], str]
    """What every task and thread is doing."""
    drain: Callable[[], Awaitable[Drained]]
    """Begin the graceful shutdown, if it has not begun, and wait for its end."""
    set_log_level: Callable[[str], None]
    """One of `LOG_LEVELS`."""
    debug_routes: Callable[[web.UrlDispatcher], None]
    """Adds the routes under `/debug` that the HTTP API of the node has, too."""
