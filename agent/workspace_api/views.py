"""What the API shows, as the rest of the agent must offer it; nothing here may hold a secret."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.api.manifest import Manifest
from agent.metrics import Metric


class Port(Protocol):
    """A listening port (`agent.ports.ListeningPort`)."""

    @property
    def port(self) -> int: ...
    @property
    def process(self) -> str: ...


class PortScanError(Exception):
    """The listening ports could not be found out; the text says why."""


def _nothing() -> None:
    return None


async def _no_metrics() -> Iterable[Metric]:
    return ()


@dataclass(frozen=True, slots=True)
class Views:
    """Everything that is asked of the agent, each when it is asked for."""

    ports: Callable[[], Awaitable[Sequence[Port]]]
    """Raises `PortScanError`."""
    watch_ports: Callable[[], AsyncGenerator[Sequence[Port]]]
    """The same now and at each change. Raises `PortScanError`."""
    manifest: Callable[[], Manifest | None]
    log_dir: Path
    """Where `coder-agent.log` and its predecessors are."""
    home: str
    """Home directory of the workspace's user."""
    net_info: Callable[[], Mapping[str, Any] | None] = _nothing
    """The node's last network check (terminal-ssh-http.md §4.3)."""
    node: Callable[[], Sequence[tuple[str, str]] | None] = _nothing
    """Labels and values that describe the tailnet node; None while there is none."""
    metrics: Callable[[], Awaitable[Iterable[Metric]]] = _no_metrics
    """The network's first."""
    set_network_debug: Callable[[bool], None] = lambda _: None
    """Log more, or less, of what the node does."""
    redact: Callable[[str], str] = field(default=lambda text: text)
    """Blanks out known secrets: somebody may have written one into a script."""
