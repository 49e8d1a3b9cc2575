"""A spool without a thread, and a server that stores a line once however often it is sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.api.methods import BATCH_CREATE_LOGS, RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import CURRENT, ApiVersion
from agent.clock import Clock
from agent.logs.checkpoints import Checkpoints
from agent.logs.disk import Disk
from agent.logs.records import BATCH_BUDGET, LINE_OVERHEAD
from agent.logs.spool import Spool, SpoolLimits

A, B = UUID(int=1), UUID(int=2)


class ListLogger:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.infos: list[str] = []

    def info(self, event: str, **values: Any) -> None:
        self.infos.append(event)

    def warning(self, event: str, **values: Any) -> None:
        self.warnings.append(event)

    def exception(self, event: str, **values: Any) -> None:
        raise AssertionError(f"{event} {values}")


class FakeServer:
    """Answers `BatchCreateLogs`; `fail` may raise, or return the response to give instead of storing."""

    def __init__(self) -> None:
        self.requests: list[pb.BatchCreateLogsRequest] = []
        self.lines: defaultdict[UUID, list[str]] = defaultdict(list)
        self.levels: defaultdict[UUID, list[int]] = defaultdict(list)
        self.fail: Callable[[pb.BatchCreateLogsRequest], pb.BatchCreateLogsResponse | None] = lambda request: None
        self._next: dict[tuple[bytes, bytes], int] = {}

    @property
    def version(self) -> ApiVersion:
        return CURRENT

    def take(self, encoded: bytes) -> pb.BatchCreateLogsResponse:
        request = pb.BatchCreateLogsRequest.FromString(encoded)
        assert sum(len(log.output.encode()) + LINE_OVERHEAD for log in request.logs) <= BATCH_BUDGET
        assert request.logs
        self.requests.append(request)
        refusal = self.fail(request)
        if refusal is not None:
            return refusal
        key = request.log_source_id, request.spool_id
        source = UUID(bytes=request.log_source_id)
        for number, log in enumerate(request.logs, request.first_sequence):
            if number >= self._next.get(key, 0):
                self.lines[source].append(log.output)
                self.levels[source].append(log.level)
                self._next[key] = number + 1
        return pb.BatchCreateLogsResponse()

    async def call_encoded(self, method: RpcMethod[Any, Any], request: bytes, *, timeout: float | None = None) -> Any:
        assert method is BATCH_CREATE_LOGS
        return self.take(request)

    async def call(self, method: RpcMethod[Any, Any], request: Any, *, timeout: float | None = None) -> Any:
        raise AssertionError(method.name)


def make_spool(
    directory: Path | None, clock: Clock, limits: SpoolLimits = SpoolLimits(), logger: ListLogger | None = None
) -> Spool:
    """One that has taken over what is there."""
    disk = Disk(directory, clock.now, logger or ListLogger())
    checkpoints = Checkpoints(disk)
    checkpoints.load(clock.wall() / 1e9)
    spool = Spool(disk, checkpoints, limits, clock, lambda source: None)
    spool.load()
    return spool


def send_all(spool: Spool, source: UUID, server: FakeServer) -> None:
    """Until nothing waits."""
    while (batch := spool.next_batch(source)) is not None:
        server.take(batch.request)
        spool.acknowledge(batch)
