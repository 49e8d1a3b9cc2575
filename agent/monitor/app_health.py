"""Health of workspace apps: their URLs are asked at intervals, changes are reported (agent-api.md §11.3)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from uuid import UUID

from agent.api.manifest import App, Manifest
from agent.api.methods import BATCH_UPDATE_APP_HEALTHS, AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock, wait_for
from agent.monitor.pace import Seconds, side_tasks
from agent.proxy import proxy_for
from agent.rpc import RpcError, StreamBrokenError, UnsupportedError

REPORT_LIMIT = 30.0
MARGIN = 0.001
"""A check ends this many seconds before the next one is due."""
MAX_DOUBLINGS = 6
"""Reports that are rejected again and again are repeated after 1, 2, 4 … 64 seconds."""

_log = logging.getLogger("agent.apps")

Probe = Callable[[str], Awaitable[int]]
"""The status that GET of a URL gives; any exception means that there was none."""


class AppHealthChecker:
    """Checks and reports the health of the apps of one agent. `prober` gives the probe of one connection."""

    def __init__(self, clock: Clock, prober: Callable[[], AbstractAsyncContextManager[Probe]] | None = None) -> None:
        self._clock = clock
        self._prober = prober or http_prober

    async def run(self, api: AgentApi, manifest: Manifest) -> None:
        """The body of a routine: check and report until the connection is lost; return if there is nothing to check.

        Each call starts from the manifest's healths. A rejected report is repeated on the next second, then ever more
        slowly.
        """
        apps = [app for app in manifest.apps if app.health != pb.WorkspaceApp.DISABLED]
        checked = [app for app in apps if is_checked(app)]
        if not checked:
            return
        healths = _Healths(apps)
        ticks = Seconds(self._clock)
        async with self._prober() as probe, side_tasks(self._watch(app, probe, healths) for app in checked):
            rejected = 0
            while True:
                await self._until_due(healths, rejected)
                await ticks.until(ticks.next())
                rejected = 0 if await self._report(api, healths) else rejected + 1

    async def _until_due(self, healths: _Healths, rejected: int) -> None:
        if not rejected:
            await healths.changed.wait()
            return
        with suppress(TimeoutError):  # the time of the repetition; a change comes first
            await wait_for(self._clock, healths.changed.wait(), 2 ** min(rejected - 1, MAX_DOUBLINGS) - 1)

    async def _watch(self, app: App, probe: Probe, healths: _Healths) -> None:
        check = app.health_check
        failures = 0
        due = self._clock.now() + check.interval
        while True:
            await self._clock.sleep(due - self._clock.now())
            trouble = await self._trouble(probe, check.url, max(check.interval - MARGIN, MARGIN))
            if trouble is None:
                failures = 0
                if healths.set(app.id, pb.HEALTHY):
                    _log.info('app "%s" is healthy', app.slug)
            elif failures < check.threshold:
                failures += 1
            elif healths.set(app.id, pb.UNHEALTHY):
                _log.warning('app "%s" is unhealthy: %s', app.slug, trouble)
            due = max(due + check.interval, self._clock.now())

    async def _trouble(self, probe: Probe, url: str, limit: float) -> str | None:
        try:
            status = await wait_for(self._clock, probe(url), limit)
        except TimeoutError:
            return f"no answer within {limit:g} s"
        except Exception as error:  # whatever keeps an app from answering makes this one check fail
            return str(error) or type(error).__name__
        return f"status {status}" if status >= 500 else None

    async def _report(self, api: AgentApi, healths: _Healths) -> bool:
        healths.changed.clear()
        try:
            await api.call(BATCH_UPDATE_APP_HEALTHS, healths.request(), timeout=REPORT_LIMIT)
        except UnsupportedError:
            raise
        except (RpcError, StreamBrokenError) as error:
            _log.warning("the server did not take the healths of the apps and is told again: %s", error)
            return False
        return True


def is_checked(app: App) -> bool:
    """Whether the app's definition asks for checks."""
    check = app.health_check
    return app.health != pb.WorkspaceApp.DISABLED and check.url != "" and check.interval > 0 and check.threshold > 0


class _Healths:
    """The latest health of each app that is not disabled. The two enums of the protocol have the same numbers."""

    def __init__(self, apps: list[App]) -> None:
        self._known: dict[UUID, int] = {app.id: app.health for app in apps}
        self.changed = asyncio.Event()

    def set(self, app: UUID, health: int) -> bool:
        """Whether this is news."""
        if self._known[app] == health:
            return False
        self._known[app] = health
        self.changed.set()
        return True

    def request(self) -> pb.BatchUpdateAppHealthRequest:
        request = pb.BatchUpdateAppHealthRequest()
        for app, health in self._known.items():
            request.updates.add(id=app.bytes, health=pb.AppHealth.ValueType(health))
        return request


@asynccontextmanager
async def http_prober() -> AsyncIterator[Probe]:
    """Probes over one HTTP session: redirects are followed, TLS is verified, bodies are not read."""
    import aiohttp
    from yarl import URL

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def probe(text: str) -> int:
            url = URL(text)
            async with session.get(url, proxy=proxy_for(url, os.environ)) as response:
                return response.status

        yield probe
