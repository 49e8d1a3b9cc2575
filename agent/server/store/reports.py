"""What agents report, written down: one short transaction per report (agent-api.md §11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, exists, func, insert, select, update

from agent.server.reports import (
    ConnectionReport,
    LifecycleReport,
    StartupReport,
    TimingReport,
)
from agent.server.resources import Measurement, ResourceState, judge, next_state
from agent.server.store import dialect
from agent.server.store.database import Database
from agent.server.store.schema import (
    Agent,
    AgentStats,
    App,
    Connection,
    Metadata,
    ResourceDatapoint,
    ResourceMonitor,
    Script,
    ScriptTiming,
)

ENDED_STATES = ("ready", "start_timeout", "start_error")


@dataclass(frozen=True, slots=True)
class AppRow:
    """What reports of app health refer to."""

    slug: str
    healthcheck_url: str


class AgentReports:
    """The reports of one agent."""

    def __init__(self, database: Database, agent: UUID) -> None:
        self._database = database
        self._agent = agent

    async def startup(self, report: StartupReport, api_version: str, now: int) -> None:
        await self._update_agent(
            version=report.version,
            expanded_directory=report.expanded_directory,
            subsystems=list(report.subsystems),
            api_version=api_version,
            updated_at=now,
        )

    async def lifecycle(self, report: LifecycleReport, now: int) -> None:
        """§11.4: when the start began and ended follows from the states."""
        changes: dict[str, Any] = {"lifecycle_state": report.state, "updated_at": now}
        if report.state == "starting":
            changes |= {"started_at": report.changed_at, "ready_at": None}
        elif report.state in ENDED_STATES:
            changes |= {"started_at": func.coalesce(Agent.started_at, report.changed_at), "ready_at": report.changed_at}
        await self._update_agent(**changes)

    async def metadata_keys(self) -> frozenset[str]:
        """The items that the agent's definition has."""
        async with self._database.reading() as session:
            return frozenset(await session.scalars(select(Metadata.key).where(Metadata.agent_id == self._agent)))

    async def apps(self) -> dict[UUID, AppRow]:
        async with self._database.reading() as session:
            query = select(App.id, App.slug, App.healthcheck_url).where(App.agent_id == self._agent)
            return {app: AppRow(slug, url) for app, slug, url in await session.execute(query)}

    async def app_healths(self, healths: Mapping[UUID, str]) -> bool:
        """Whether any health changed."""
        changed = False
        async with self._database.transaction() as session:
            for app, health in healths.items():
                result = await session.execute(
                    update(App)
                    .where(App.id == app, App.agent_id == self._agent, App.health != health)
                    .values(health=health)
                    .returning(App.id)
                )
                changed = changed or result.first() is not None
        return changed

    async def stats(self, stats: Mapping[str, Any], now: int) -> None:
        async with self._database.transaction() as session:
            await session.execute(insert(AgentStats).values(agent_id=self._agent, created_at=now, **stats))

    async def timing(self, report: TimingReport) -> None:
        """Raises `LookupError` for a script that is not this agent's."""
        async with self._database.transaction() as session:
            known = select(exists().where(Script.id == report.script_id, Script.agent_id == self._agent))
            if not await session.scalar(known):
                raise LookupError(f"script {report.script_id} is not in the agent's definition")
            await session.execute(
                insert(ScriptTiming).values(
                    script_id=report.script_id,
                    started_at=report.start,
                    ended_at=report.end,
                    exit_code=report.exit_code,
                    stage=report.stage,
                    status=report.status,
                )
            )

    async def connection(self, report: ConnectionReport) -> None:
        """Reports of one id are merged, in whatever order and however often they come (§11.8)."""
        row: dict[str, Any] = {"agent_id": self._agent, "id": report.id, "type": report.type, "ip": report.ip}
        if report.action == "connect":
            news: dict[str, Any] = {"connected_at": report.at}
        else:
            news = {"disconnected_at": report.at, "status_code": report.status_code, "reason": report.reason}
        statement = dialect.insert(self._database.dialect, Connection).values(**row, **news)
        merged = statement.on_conflict_do_update(index_elements=["agent_id", "id"], set_=news)
        async with self._database.transaction() as session:
            await session.execute(merged)

    async def monitors(self) -> dict[str, bool]:
        """Whether each resource monitor is enabled, by path; the empty path is memory."""
        async with self._database.reading() as session:
            query = select(ResourceMonitor.path, ResourceMonitor.enabled).where(ResourceMonitor.agent_id == self._agent)
            return dict((await session.execute(query)).all())

    async def resources(self, measurements: Sequence[Measurement], now: int) -> list[tuple[str, bool]]:
        """Replace the data points by these (an agent always sends all that it has), and judge the monitors anew.

        The monitors that changed their mind: path, and whether it is an alert.
        """
        changed: list[tuple[str, bool]] = []
        async with self._database.transaction() as session:
            monitors = (
                await session.scalars(
                    select(ResourceMonitor).where(ResourceMonitor.agent_id == self._agent).with_for_update()
                )
            ).all()
            await session.execute(delete(ResourceDatapoint).where(ResourceDatapoint.agent_id == self._agent))
            rows = [
                {"agent_id": self._agent, "path": monitor.path, "collected_at": at, "used": used, "total": total}
                for monitor in monitors
                for at, (used, total) in _points(measurements, monitor.path).items()
            ]
            if rows:
                await session.execute(insert(ResourceDatapoint), rows)
            for monitor in monitors:
                if not monitor.enabled:
                    continue
                points = [
                    judge(used, total, monitor.threshold)
                    for used, total in _points(measurements, monitor.path).values()
                ]
                before = ResourceState.BAD if monitor.alert else ResourceState.OK
                if (after := next_state(before, points)) is not before:
                    monitor.alert, monitor.changed_at = after is ResourceState.BAD, now
                    changed.append((monitor.path, monitor.alert))
        return changed

    async def _update_agent(self, **changes: Any) -> None:
        async with self._database.transaction() as session:
            await session.execute(update(Agent).where(Agent.id == self._agent).values(**changes))


def _points(measurements: Sequence[Measurement], path: str) -> dict[int, tuple[int | None, int | None]]:
    """Used and total by time, oldest first; the same time twice counts once."""
    return {one.at: one.usage.get(path, (None, None)) for one in sorted(measurements, key=lambda one: one.at)}
