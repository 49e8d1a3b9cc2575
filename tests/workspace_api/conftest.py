"""The API on connections in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.api.manifest import Manifest
from agent.tailnet.connector import TailnetConnector
from agent.testing import ManualClock, settle
from agent.testing.streams import MemoryStream, stream_pair
from agent.workspace_api import Metric, PortScanError, Views, WorkspaceApi


@dataclass(frozen=True)
class Port:
    port: int
    process: str


@dataclass
class Shown:
    """What the views answer; a test sets it."""

    ports: Sequence[Port] | str = ()
    """A text: scanning fails with it."""
    manifest: Manifest | None = None
    net_info: Mapping[str, Any] | None = None
    node: Sequence[tuple[str, str]] | None = None
    metrics: Sequence[Metric] = ()
    debug: list[bool] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: watchers look again."""
    hold: asyncio.Event | None = None
    """Set: asking for the ports waits for it."""

    async def list_metrics(self) -> Sequence[Metric]:
        return self.metrics

    async def list_ports(self) -> Sequence[Port]:
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.ports, str):
            if self.ports == "defect":
                raise ZeroDivisionError("a defect")
            raise PortScanError(self.ports)
        return self.ports

    async def watch_ports(self) -> AsyncGenerator[Sequence[Port]]:
        yield await self.list_ports()
        while True:
            await self.changed.wait()
            self.changed.clear()
            yield await self.list_ports()


class Client:
    """An HTTP client of the API. `dial` is for what no decent client does."""

    def __init__(self, shown: Shown, home: Path, logs: Path, clock: ManualClock) -> None:
        self.shown = shown
        self.home = home
        self.logs = logs
        self.api = WorkspaceApi(
            Views(
                ports=shown.list_ports,
                watch_ports=shown.watch_ports,
                manifest=lambda: shown.manifest,
                log_dir=logs,
                home=str(home),
                net_info=lambda: shown.net_info,
                node=lambda: shown.node,
                metrics=shown.list_metrics,
                set_network_debug=shown.debug.append,
                redact=lambda text: text.replace("s3cr3t-token", "[redacted]"),
            ),
            clock,
        )
        self.serving: set[asyncio.Task[None]] = set()
        self.session = aiohttp.ClientSession(connector=TailnetConnector(self._dial, clock))

    async def _dial(self, host: str, port: int) -> MemoryStream:
        return self.dial()

    def dial(self, capacity: int = 65536) -> MemoryStream:
        near, far = stream_pair(capacity)
        task = asyncio.create_task(self.api.serve(far))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        return near

    async def get(self, path: str, **options: Any) -> tuple[int, str, str]:
        """Status, content type and body."""
        return await self.ask("GET", path, **options)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, str, str]:
        async with self.session.request(method, f"http://agent:4{path}", **options) as answer:
            return answer.status, answer.headers.get("Content-Type", ""), await answer.text()

    async def aclose(self) -> None:
        await self.session.close()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)
        await self.api.aclose()
        await settle()


@pytest.fixture
async def client(clock: ManualClock, tmp_path: Path) -> AsyncIterator[Client]:
    home, logs = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    logs.mkdir()
    client = Client(Shown(), home, logs, clock)
    yield client
    await client.aclose()


Step = Callable[[], bool]


async def until(true: Step) -> None:
    """Let tasks and threads run until something holds; the test's own time limit is the bound."""
    while not true():
        await asyncio.sleep(0)
