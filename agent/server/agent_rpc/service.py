"""The Agent service as one connected agent sees it (agent-api.md §6.6, §11)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from agent.api import methods
from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.clock import Clock
from agent.protocol.drpc import ErrorCode
from agent.rpc import Handler, RpcError, Unary
from agent.server import log_lines, reports
from agent.server.reports import MetadataValue, ReportRefusedError
from agent.server.store import Database, logs
from agent.server.store.logs import LimitReachedError, SpoolPosition
from agent.server.store.reports import AgentReports

logger = logging.getLogger("agent.server.rpc")

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

UNIMPLEMENTED = (
    methods.CREATE_SUB_AGENT,
    methods.DELETE_SUB_AGENT,
    methods.LIST_SUB_AGENTS,
    methods.REPORT_BOUNDARY_LOGS,
    methods.UPDATE_APP_STATUS,
    methods.PUSH_CONTEXT_STATE,
)
"""Answered with code 12, which §12 rule 4 allows; agents then go without them."""


class Topic(Enum):
    """What of an agent changed. STATE is everything but lines and metadata."""

    LOGS = "logs"
    STATE = "state"


class Surroundings(Protocol):
    """What the service needs of the server around it."""

    @property
    def database(self) -> Database: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def settings(self) -> Settings: ...
    async def manifest(self, agent: UUID) -> pb.Manifest:
        """The agent's manifest as its definition is now."""

    async def banners(self) -> list[pb.BannerConfig]:
        """What the owner wants to be shown."""

    def store_metadata(self, agent: UUID, values: Sequence[MetadataValue]) -> None:
        """Write the values soon, and tell who watches."""

    def changed(self, agent: UUID, topic: Topic) -> None:
        """Tell who watches. Called after the commit."""


MAX_SEQUENCE = 2**62
"""Line numbers of a spool must fit the database, and so must their successors."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes are in bytes, times in seconds. All times must be positive (§12 rules 6 and 7)."""

    log_limit: int
    report_interval: float = 30.0
    datapoints: int = 20
    collection_interval: int = 10


class AgentService:
    """The handlers of one connection."""

    def __init__(self, agent: UUID, version: ApiVersion, around: Surroundings) -> None:
        self._agent = agent
        self._version = version
        self._around = around
        self._reports = AgentReports(around.database, agent)
        self._metadata_keys: frozenset[str] | None = None  # those of the definition, which an agent keeps for life

    def handlers(self) -> dict[str, Handler]:
        """By path, for `RpcServer`."""
        served = [
            self._serve(methods.GET_MANIFEST, self._get_manifest),
            self._serve(methods.GET_SERVICE_BANNER, self._get_service_banner),
            self._serve(methods.GET_ANNOUNCEMENT_BANNERS, self._get_announcement_banners),
            self._serve(methods.UPDATE_STARTUP, self._update_startup),
            self._serve(methods.UPDATE_LIFECYCLE, self._update_lifecycle),
            self._serve(methods.BATCH_CREATE_LOGS, self._batch_create_logs),
            self._serve(methods.BATCH_UPDATE_METADATA, self._batch_update_metadata),
            self._serve(methods.BATCH_UPDATE_APP_HEALTHS, self._batch_update_app_healths),
            self._serve(methods.UPDATE_STATS, self._update_stats),
            self._serve(methods.SCRIPT_COMPLETED, self._script_completed),
            self._serve(methods.GET_RESOURCES_MONITORING_CONFIGURATION, self._get_resources_configuration),
            self._serve(methods.PUSH_RESOURCES_MONITORING_USAGE, self._push_resources_usage),
            self._serve(methods.REPORT_CONNECTION, self._report_connection),
        ]
        return dict(served) | {method.path: Unary(_unimplemented) for method in UNIMPLEMENTED}

    @staticmethod
    def _serve(
        method: RpcMethod[Request, Response], handle: Callable[[Request], Awaitable[Response]]
    ) -> tuple[str, Handler]:
        async def unary(data: bytes) -> bytes:
            try:
                request = method.request.FromString(data)
            except DecodeError as error:
                raise RpcError(f"the request is no {method.request.DESCRIPTOR.name}: {error}") from error
            try:
                return (await handle(request)).SerializeToString()
            except ReportRefusedError as error:
                raise RpcError(str(error)) from error

        return method.path, Unary(unary)

    async def _get_manifest(self, _: pb.GetManifestRequest) -> pb.Manifest:
        return await self._around.manifest(self._agent)

    async def _get_service_banner(self, _: pb.GetServiceBannerRequest) -> pb.ServiceBanner:
        """The predecessor for agents before API 2.1: the first banner."""
        for banner in await self._around.banners():
            return pb.ServiceBanner(
                enabled=banner.enabled, message=banner.message, background_color=banner.background_color
            )
        return pb.ServiceBanner()

    async def _get_announcement_banners(self, _: pb.GetAnnouncementBannersRequest) -> pb.GetAnnouncementBannersResponse:
        return pb.GetAnnouncementBannersResponse(announcement_banners=await self._around.banners())

    async def _update_startup(self, request: pb.UpdateStartupRequest) -> pb.Startup:
        report = reports.parse_startup(request.startup if request.HasField("startup") else None)
        await self._reports.startup(report, str(self._version), self._now())
        self._around.changed(self._agent, Topic.STATE)
        return request.startup

    async def _update_lifecycle(self, request: pb.UpdateLifecycleRequest) -> pb.Lifecycle:
        now = self._now()
        report = reports.parse_lifecycle(request.lifecycle if request.HasField("lifecycle") else None, now)
        await self._reports.lifecycle(report, now)
        self._around.changed(self._agent, Topic.STATE)
        return request.lifecycle

    async def _batch_create_logs(self, request: pb.BatchCreateLogsRequest) -> pb.BatchCreateLogsResponse:
        """§10.4, with the exactly-once extension of agent.proto."""
        if not request.logs:
            return pb.BatchCreateLogsResponse()
        raw_source = request.log_source_id
        source = reports.parse_uuid(raw_source, f"parse log source ID {reports.quote_bytes(raw_source)}")
        spool = None
        if request.spool_id:
            spool = SpoolPosition(reports.parse_uuid(request.spool_id, "parse spool ID"), request.first_sequence)
            if spool.first > MAX_SEQUENCE:
                raise ReportRefusedError(f"first sequence {spool.first} exceeds {MAX_SEQUENCE}")
        if source.int == 0:
            source = await logs.add_external_source(self._around.database, self._agent, self._now())
        try:
            await logs.append(
                self._around.database,
                self._agent,
                source,
                log_lines.from_proto(request.logs),
                limit=self._around.settings.log_limit,
                now=self._now(),
                spool=spool,
                refuse_marked=True,
            )
        except LimitReachedError:
            return pb.BatchCreateLogsResponse(log_limit_exceeded=True)
        finally:
            # However it ended: an agent that goes away cancels this call, perhaps after the lines were stored.
            self._around.changed(self._agent, Topic.LOGS)
        return pb.BatchCreateLogsResponse()

    async def _batch_update_metadata(self, request: pb.BatchUpdateMetadataRequest) -> pb.BatchUpdateMetadataResponse:
        values, failure = reports.parse_metadata(request.metadata)
        if self._metadata_keys is None:
            self._metadata_keys = await self._reports.metadata_keys()
        self._around.store_metadata(self._agent, [value for value in values if value.key in self._metadata_keys])
        if failure:
            raise ReportRefusedError(failure)
        return pb.BatchUpdateMetadataResponse()

    async def _batch_update_app_healths(
        self, request: pb.BatchUpdateAppHealthRequest
    ) -> pb.BatchUpdateAppHealthResponse:
        healths = reports.parse_app_healths(request.updates, await self._reports.apps())
        if await self._reports.app_healths(healths):
            self._around.changed(self._agent, Topic.STATE)
        return pb.BatchUpdateAppHealthResponse()

    async def _update_stats(self, request: pb.UpdateStatsRequest) -> pb.UpdateStatsResponse:
        if request.HasField("stats"):
            await self._reports.stats(reports.parse_stats(request.stats), self._now())
        interval = Duration()
        interval.FromNanoseconds(round(self._around.settings.report_interval * 1e9))
        return pb.UpdateStatsResponse(report_interval=interval)

    async def _script_completed(
        self, request: pb.WorkspaceAgentScriptCompletedRequest
    ) -> pb.WorkspaceAgentScriptCompletedResponse:
        report = reports.parse_timing(request.timing if request.HasField("timing") else None)
        try:
            await self._reports.timing(report)
        except LookupError as error:
            raise ReportRefusedError(f"insert workspace agent script timings into database: {error}") from error
        return pb.WorkspaceAgentScriptCompletedResponse()

    async def _get_resources_configuration(
        self, _: pb.GetResourcesMonitoringConfigurationRequest
    ) -> pb.GetResourcesMonitoringConfigurationResponse:
        settings, monitors = self._around.settings, await self._reports.monitors()
        answer = pb.GetResourcesMonitoringConfigurationResponse()
        answer.config.num_datapoints = settings.datapoints
        answer.config.collection_interval_seconds = settings.collection_interval
        for path, enabled in monitors.items():
            if path:
                answer.volumes.add(path=path, enabled=enabled)
            else:
                answer.memory.enabled = enabled
        return answer

    async def _push_resources_usage(
        self, request: pb.PushResourcesMonitoringUsageRequest
    ) -> pb.PushResourcesMonitoringUsageResponse:
        measurements = reports.parse_measurements(request.datapoints)
        for path, alert in await self._reports.resources(measurements, self._now()):
            what = f"volume {path}" if path else "memory"
            logger.warning("agent %s: %s is %s", self._agent, what, "running out" if alert else "fine again")
            self._around.changed(self._agent, Topic.STATE)
        return pb.PushResourcesMonitoringUsageResponse()

    async def _report_connection(self, request: pb.ReportConnectionRequest) -> Empty:
        connection = request.connection if request.HasField("connection") else None
        await self._reports.connection(reports.parse_connection(connection, self._now()))
        return Empty()

    def _now(self) -> int:
        return self._around.clock.wall() // 1000


async def _unimplemented(_: bytes) -> bytes:
    raise RpcError("Unimplemented", ErrorCode.UNIMPLEMENTED)
