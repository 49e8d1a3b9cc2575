"""Memory and volumes, watched for the server, which knows the thresholds (agent-api.md §11.7, daemon.md §5.4)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from agent.api.methods import GET_RESOURCES_MONITORING_CONFIGURATION, PUSH_RESOURCES_MONITORING_USAGE, AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.monitor import usage
from agent.monitor.usage import Usage, UsageError
from agent.rpc import RpcError, StreamBrokenError, UnsupportedError

CALL_LIMIT = 30.0
MAX_DATAPOINTS = 1000
"""However many a server asks for: more would be a large message every few seconds."""

_log = logging.getLogger("agent.resources")


class ResourceMonitor:
    """Reads and pushes. `memory` and `disk` read files, in a thread, and raise `UsageError`."""

    def __init__(
        self,
        clock: Clock,
        memory: Callable[[], Usage] = usage.memory,
        disk: Callable[[str], Usage] = usage.disk,
    ) -> None:
        self._clock = clock
        self._memory = memory
        self._disk = disk
        self._failing: set[str] = set()

    async def run(self, api: AgentApi) -> None:
        """The body of a routine. Returns when the server asks for nothing.

        Differs from the specification in that: with nothing to watch, nothing is read and no empty data points go out.
        """
        request = pb.GetResourcesMonitoringConfigurationRequest()
        wanted = await api.call(GET_RESOURCES_MONITORING_CONFIGURATION, request, timeout=CALL_LIMIT)
        with_memory = wanted.HasField("memory") and wanted.memory.enabled
        volumes = [volume.path for volume in wanted.volumes if volume.enabled]
        count = min(wanted.config.num_datapoints, MAX_DATAPOINTS)
        interval = float(wanted.config.collection_interval_seconds)
        if count <= 0 or interval <= 0 or not (with_memory or volumes):
            return
        points: deque[pb.PushResourcesMonitoringUsageRequest.Datapoint] = deque(maxlen=count)
        due = self._clock.now()
        while True:
            # By the plan, not by when the last push was answered. What a stop of the machine left out stays out.
            due = max(due + interval, self._clock.now())
            await self._clock.sleep(due - self._clock.now())
            points.append(await asyncio.to_thread(self._read, with_memory, volumes))
            if len(points) == count:
                await self._push(api, points)

    async def _push(self, api: AgentApi, points: Sequence[pb.PushResourcesMonitoringUsageRequest.Datapoint]) -> None:
        try:
            await api.call(
                PUSH_RESOURCES_MONITORING_USAGE,
                pb.PushResourcesMonitoringUsageRequest(datapoints=points),
                timeout=CALL_LIMIT,
            )
        except UnsupportedError:
            raise
        except (RpcError, StreamBrokenError) as error:
            _log.warning("the server did not take the usage of resources: %s", error)

    def _read(self, with_memory: bool, volumes: Sequence[str]) -> pb.PushResourcesMonitoringUsageRequest.Datapoint:
        point = pb.PushResourcesMonitoringUsageRequest.Datapoint()
        point.collected_at.FromNanoseconds(self._clock.wall())
        if with_memory and (read := self._try("memory", self._memory)) is not None:
            point.memory.used, point.memory.total = read.used, read.total or 0
        for path in volumes:
            if (read := self._try(path, lambda path=path: self._disk(path))) is not None:  # type: ignore[misc]
                point.volumes.add(volume=path, used=read.used, total=read.total or 0)
        return point

    def _try(self, name: str, read: Callable[[], Usage]) -> Usage | None:
        """None when it could not be read: the others go out without it. Told once until it works again."""
        try:
            found = read()
        except UsageError as error:
            if name not in self._failing:
                _log.warning("usage of %s cannot be read and is left out: %s", name, error)
            self._failing.add(name)
            return None
        self._failing.discard(name)
        return found
