"""The RPCs of both services: names, messages, and the API version each appeared in (agent-api.md §6.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2 as tailnet
from agent.api.versions import ApiVersion

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

SERVICE = "/coder.agent.v2.Agent/"
TAILNET_SERVICE = "/coder.tailnet.v2.Tailnet/"


@dataclass(frozen=True, slots=True)
class RpcMethod(Generic[Request, Response]):
    """One RPC. `path` is what dRPC's Invoke carries. Those that stream say so where they are named."""

    name: str
    request: type[Request]
    response: type[Response]
    since: ApiVersion
    service: str = SERVICE

    @property
    def path(self) -> str:
        return self.service + self.name


class AgentApi(Protocol):
    """The Agent service of one connection, as the agent's routines use it.

    `call` raises `agent.rpc.RpcError` when the server answers with an error, `agent.rpc.UnsupportedError` when it does
    not know the method (or is older than the method's `since`; nothing is sent then), `agent.rpc.StreamBrokenError`
    when this one call broke off, and `agent.rpc.ConnectionLostError` when the connection ends or `timeout` seconds
    pass.
    """

    @property
    def version(self) -> ApiVersion:
        """What was negotiated with this server."""

    async def call(
        self, method: RpcMethod[Request, Response], request: Request, *, timeout: float | None = None
    ) -> Response:
        """One unary RPC; `timeout` is in seconds."""

    async def call_encoded(
        self, method: RpcMethod[Request, Response], request: bytes, *, timeout: float | None = None
    ) -> Response:
        """The same with a request that is protobuf bytes already."""


def _since(minor: int) -> ApiVersion:
    return ApiVersion(2, minor)


GET_MANIFEST = RpcMethod("GetManifest", pb.GetManifestRequest, pb.Manifest, _since(0))
GET_SERVICE_BANNER = RpcMethod("GetServiceBanner", pb.GetServiceBannerRequest, pb.ServiceBanner, _since(0))
UPDATE_STATS = RpcMethod("UpdateStats", pb.UpdateStatsRequest, pb.UpdateStatsResponse, _since(0))
UPDATE_LIFECYCLE = RpcMethod("UpdateLifecycle", pb.UpdateLifecycleRequest, pb.Lifecycle, _since(0))
BATCH_UPDATE_APP_HEALTHS = RpcMethod(
    "BatchUpdateAppHealths", pb.BatchUpdateAppHealthRequest, pb.BatchUpdateAppHealthResponse, _since(0)
)
UPDATE_STARTUP = RpcMethod("UpdateStartup", pb.UpdateStartupRequest, pb.Startup, _since(0))
BATCH_UPDATE_METADATA = RpcMethod(
    "BatchUpdateMetadata", pb.BatchUpdateMetadataRequest, pb.BatchUpdateMetadataResponse, _since(0)
)
BATCH_CREATE_LOGS = RpcMethod("BatchCreateLogs", pb.BatchCreateLogsRequest, pb.BatchCreateLogsResponse, _since(0))
GET_ANNOUNCEMENT_BANNERS = RpcMethod(
    "GetAnnouncementBanners", pb.GetAnnouncementBannersRequest, pb.GetAnnouncementBannersResponse, _since(1)
)
SCRIPT_COMPLETED = RpcMethod(
    "ScriptCompleted",
    pb.WorkspaceAgentScriptCompletedRequest,
    pb.WorkspaceAgentScriptCompletedResponse,
    _since(3),
)
GET_RESOURCES_MONITORING_CONFIGURATION = RpcMethod(
    "GetResourcesMonitoringConfiguration",
    pb.GetResourcesMonitoringConfigurationRequest,
    pb.GetResourcesMonitoringConfigurationResponse,
    _since(4),
)
PUSH_RESOURCES_MONITORING_USAGE = RpcMethod(
    "PushResourcesMonitoringUsage",
    pb.PushResourcesMonitoringUsageRequest,
    pb.PushResourcesMonitoringUsageResponse,
    _since(4),
)
REPORT_CONNECTION = RpcMethod("ReportConnection", pb.ReportConnectionRequest, Empty, _since(4))
CREATE_SUB_AGENT = RpcMethod("CreateSubAgent", pb.CreateSubAgentRequest, pb.CreateSubAgentResponse, _since(6))
DELETE_SUB_AGENT = RpcMethod("DeleteSubAgent", pb.DeleteSubAgentRequest, pb.DeleteSubAgentResponse, _since(6))
LIST_SUB_AGENTS = RpcMethod("ListSubAgents", pb.ListSubAgentsRequest, pb.ListSubAgentsResponse, _since(6))
REPORT_BOUNDARY_LOGS = RpcMethod(
    "ReportBoundaryLogs", pb.ReportBoundaryLogsRequest, pb.ReportBoundaryLogsResponse, _since(7)
)
UPDATE_APP_STATUS = RpcMethod("UpdateAppStatus", pb.UpdateAppStatusRequest, pb.UpdateAppStatusResponse, _since(8))
PUSH_CONTEXT_STATE = RpcMethod("PushContextState", pb.PushContextStateRequest, pb.PushContextStateResponse, _since(10))

# The Tailnet service (tailnet.md §3.3)

COORDINATE = RpcMethod("Coordinate", tailnet.CoordinateRequest, tailnet.CoordinateResponse, _since(0), TAILNET_SERVICE)
"""Streams in both directions."""
STREAM_DERP_MAPS = RpcMethod(
    "StreamDERPMaps", tailnet.StreamDERPMapsRequest, tailnet.DERPMap, _since(0), TAILNET_SERVICE
)
"""Streams its responses."""
POST_TELEMETRY = RpcMethod(
    "PostTelemetry", tailnet.TelemetryRequest, tailnet.TelemetryResponse, _since(2), TAILNET_SERVICE
)
REFRESH_RESUME_TOKEN = RpcMethod(
    "RefreshResumeToken",
    tailnet.RefreshResumeTokenRequest,
    tailnet.RefreshResumeTokenResponse,
    _since(3),
    TAILNET_SERVICE,
)
WORKSPACE_UPDATES = RpcMethod(
    "WorkspaceUpdates", tailnet.WorkspaceUpdatesRequest, tailnet.WorkspaceUpdate, _since(3), TAILNET_SERVICE
)
"""Streams its responses."""
