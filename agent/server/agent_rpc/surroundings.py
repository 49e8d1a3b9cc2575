"""What the Agent service needs of the server around it: the database and the events."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.server.agent_rpc.service import Settings, Topic
from agent.server.derp_map import DerpMaps
from agent.server.events import Events, agent_topic, logs_topic
from agent.server.manifest import to_manifest
from agent.server.metadata_writer import MetadataWriter
from agent.server.reports import MetadataValue, ReportRefusedError
from agent.server.store import Database, agents, banners

_TOPICS = {Topic.LOGS: logs_topic, Topic.STATE: agent_topic}


class AgentSurroundings:
    """Implements `service.Surroundings`."""

    def __init__(
        self,
        database: Database,
        events: Events,
        clock: Clock,
        settings: Settings,
        metadata: MetadataWriter,
        derp_maps: DerpMaps,
    ) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self._events, self._metadata, self._derp_maps = events, metadata, derp_maps

    async def manifest(self, agent: UUID) -> pb.Manifest:
        async with self.database.reading() as session:
            row = await agents.by_id(session, agent)
            if row is None:
                raise ReportRefusedError("the workspace of this agent was deleted")
            return to_manifest(
                row,
                await agents.scripts(session, agent),
                await agents.apps(session, agent),
                await agents.metadata(session, agent),
                derp_maps=self._derp_maps,
                git_auth_configs=await agents.count_git_providers(session),
            )

    async def banners(self) -> list[pb.BannerConfig]:
        return [
            pb.BannerConfig(enabled=one.enabled, message=one.message, background_color=one.background_color)
            for one in await banners.read(self.database)
        ]

    def store_metadata(self, agent: UUID, values: Sequence[MetadataValue]) -> None:
        self._metadata.put(agent, values)

    def changed(self, agent: UUID, topic: Topic) -> None:
        self._events.publish(_TOPICS[topic](agent))
