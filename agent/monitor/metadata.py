"""Metadata: commands of the template, run at intervals, their output reported (agent-api.md §11.2, daemon.md §5.1).

Collections and reports happen on whole seconds counted from the start of the connection, as if a ticker of 1 s ran;
but nothing wakes up unless something is due.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Protocol

from agent.api.manifest import Manifest, MetadataDescription
from agent.api.methods import BATCH_UPDATE_METADATA, AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.monitor.pace import Seconds, side_tasks
from agent.process import build_command
from agent.process.bounded import Job, Outcome, StartError, run_command
from agent.rpc import RpcError, StreamBrokenError, UnsupportedError

MAX_VALUE = 10 * 1024
"""Bytes of a value that are kept; the server keeps 2048."""
DEFAULT_LIMIT = 3.0
"""Seconds for a command that has neither timeout nor interval."""
REPORT_LIMIT = 30.0

_log = logging.getLogger("agent.metadata")


class CommandContext(Protocol):
    """What commands of the workspace run with (daemon.md §2.4). It is asked in a thread, and may raise."""

    def environment(self) -> dict[str, str]:
        """All variables of a command."""

    def shell(self) -> str:
        """The user's login shell."""

    def directory(self) -> str:
        """The working directory."""


class MetadataCollector:
    """Collects and reports the metadata of one agent."""

    def __init__(self, context: CommandContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock

    async def run(self, api: AgentApi, manifest: Manifest) -> None:
        """The body of a routine: collect and report until the connection is lost; return if there is nothing to do.

        Each call starts from scratch. A batch that the server rejects is logged and forgotten.
        """
        if not manifest.metadata:
            return
        batch = _Batch()
        ticks = Seconds(self._clock)
        by_key = {description.key: description for description in manifest.metadata}
        async with side_tasks(self._watch(description, ticks, batch) for description in by_key.values()):
            while True:
                await batch.filled.wait()
                await ticks.until(ticks.next())
                await self._report(api, batch.take())

    async def _watch(self, description: MetadataDescription, ticks: Seconds, batch: _Batch) -> None:
        tick = 0
        while True:
            batch.put(description.key, await self._collect(description))
            if description.interval <= 0:
                return
            tick = max(tick + description.interval, ticks.next())
            await ticks.until(tick)

    async def _collect(self, description: MetadataDescription) -> pb.WorkspaceAgentMetadata.Result:
        result = pb.WorkspaceAgentMetadata.Result()
        result.collected_at.FromNanoseconds(self._clock.wall())
        limit = next((float(s) for s in (description.timeout, description.interval) if s > 0), DEFAULT_LIMIT)
        try:
            outcome = await run_command(
                lambda: self._job(description.script), limit=limit, max_output=MAX_VALUE, clock=self._clock
            )
        except StartError as error:
            result.error = _text(f"start cmd: {error}")
        except Exception as error:  # one key's trouble, of whatever kind, is told as its value
            result.error = _text(f"create cmd: {error}")
        else:
            result.value = _text(outcome.output.decode("utf-8", "replace"))
            result.error = describe(outcome)
        return result

    def _job(self, script: str) -> Job:
        command = build_command(script, self._context.shell())
        try:
            return Job(command, self._context.environment(), self._context.directory())
        except BaseException:
            command.cleanup()
            raise

    async def _report(self, api: AgentApi, results: dict[str, pb.WorkspaceAgentMetadata.Result]) -> None:
        request = pb.BatchUpdateMetadataRequest(
            metadata=[pb.Metadata(key=key, result=result) for key, result in results.items()]
        )
        try:
            await api.call(BATCH_UPDATE_METADATA, request, timeout=REPORT_LIMIT)
        except UnsupportedError:
            raise
        except (RpcError, StreamBrokenError) as error:
            _log.warning("the server did not take the metadata %s: %s", ", ".join(sorted(results)), error)


def _text(text: str) -> str:
    """The text as a protobuf string, which is UTF-8, and as text of a database, which may hold no NUL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class _Batch:
    """The newest result of each key that is not reported yet."""

    def __init__(self) -> None:
        self._results: dict[str, pb.WorkspaceAgentMetadata.Result] = {}
        self.filled = asyncio.Event()

    def put(self, key: str, result: pb.WorkspaceAgentMetadata.Result) -> None:
        self._results[key] = result
        self.filled.set()

    def take(self) -> dict[str, pb.WorkspaceAgentMetadata.Result]:
        results, self._results = self._results, {}
        self.filled.clear()
        return results


def describe(outcome: Outcome) -> str:
    """The error text of a command that ran, empty when nothing was wrong (daemon.md §5.1)."""
    parts = []
    if outcome.status is None:
        parts.append("signal: killed, but it has not ended")
    elif outcome.status < 0:
        parts.append(f"signal: {signal_name(-outcome.status)}")
    elif outcome.status > 0:
        parts.append(f"exit status {outcome.status}")
    if outcome.printed > MAX_VALUE:
        parts.append(f"output truncated from {outcome.printed} to {MAX_VALUE} bytes")
    if outcome.timed_out:
        parts.append("context deadline exceeded")
    return "run cmd: " + "\n".join(parts) if parts else ""


def signal_name(number: int) -> str:
    """A signal's name as Go programs write it, e.g. `killed`."""
    try:
        return (signal.strsignal(number) or f"signal {number}").lower()
    except ValueError:
        return f"signal {number}"
