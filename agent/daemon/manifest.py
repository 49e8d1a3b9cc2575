"""The manifest routine: fetch, check, tell the server what was understood, hand it on (daemon.md §2.1).

Neither script texts nor values of variables are ever logged (quirk Q5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from agent.api import methods
from agent.api.manifest import Manifest, Secret, from_proto
from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.daemon.logfile import get_logger
from agent.process import expand_path

CALL_LIMIT = 30.0
"""Seconds for one call."""

Publish = Callable[[Manifest, tuple[Secret, ...], str], Awaitable[None]]
"""Takes the manifest, its secrets and the expanded directory."""


class ManifestRoutine:
    """Runs once per connection. `process` is the environment of the agent, which directories are expanded with."""

    def __init__(
        self, *, version: str, subsystems: Sequence[str], process: Mapping[str, str], publish: Publish
    ) -> None:
        self._version = version
        self._subsystems = [pb.Startup.Subsystem.Value(name.upper()) for name in subsystems]
        self._process = process
        self._publish = publish

    async def run(self, api: AgentApi) -> None:
        """Raises `ManifestError` for a manifest that cannot be used; nothing of it has been taken in then."""
        message = await api.call(methods.GET_MANIFEST, pb.GetManifestRequest(), timeout=CALL_LIMIT)
        manifest, secrets = from_proto(message)
        get_logger("agent.manifest").info(
            "fetched manifest",
            agent=str(manifest.agent_id),
            workspace=manifest.workspace_name,
            scripts=len(manifest.scripts),
            apps=len(manifest.apps),
            metadata=len(manifest.metadata),
            variables=len(manifest.environment),
            secrets=len(secrets),
        )
        directory = expand_path(manifest.directory, self._process)
        startup = pb.Startup(version=self._version, expanded_directory=directory, subsystems=self._subsystems)
        await api.call(methods.UPDATE_STARTUP, pb.UpdateStartupRequest(startup=startup), timeout=CALL_LIMIT)
        await self._publish(manifest, secrets, directory)
