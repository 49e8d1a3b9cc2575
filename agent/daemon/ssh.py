"""The workspace's SSH server, for the life of the process (terminal-ssh-http.md §3).

asyncssh is imported when a client first connects: it would hold up the start of the process, and an agent that nobody
logs in to does without its memory. The host key is computed before, as soon as there are names to compute it from.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agent.api.manifest import Manifest
from agent.clock import Clock
from agent.daemon.config import AgentConfig
from agent.daemon.environment import CommandEnvironment
from agent.daemon.traffic import SshSessions

if TYPE_CHECKING:
    from agent.ssh.counters import Counters, SessionReports
    from agent.ssh.greeting import Greeting
    from agent.ssh.hostkey import RsaPrimes
    from agent.ssh.server import SshServer
    from agent.tailnet.streams import TailnetStream

PORTS = (1, 22)
"""Where the tailnet has this service."""


class Ssh:
    """Serves connections; those that come before the first manifest wait.

    `manifest` gives that of now, `banners` the announcements of now that are switched on.
    """

    def __init__(
        self,
        config: AgentConfig,
        context: CommandEnvironment,
        clock: Clock,
        *,
        home: str,
        manifest: Callable[[], Manifest | None],
        banners: Callable[[], Sequence[str]],
        reports: SessionReports | None = None,
    ) -> None:
        self._config = config
        self._context = context
        self._clock = clock
        self._home = home
        self._manifest = manifest
        self._banners = banners
        self._reports = reports
        self._primes: asyncio.Task[RsaPrimes] | None = None
        self._named = asyncio.Event()
        self._making: asyncio.Task[SshServer] | None = None
        self._server: SshServer | None = None
        self._closed = False

    @property
    def counters(self) -> Counters | None:
        """None until somebody has connected."""
        return self._server.counters if self._server is not None else None

    def sessions(self) -> SshSessions:
        """What runs now, by kind."""
        if self._server is None:
            return SshSessions()
        from agent.ssh.counters import Kind

        live = self._server.counters.live
        return SshSessions(live[Kind.SSH], live[Kind.VSCODE], live[Kind.JETBRAINS])

    def named(self, manifest: Manifest) -> None:
        """The names are known; those of the first manifest are kept."""
        if self._primes is None:
            names = (manifest.owner_name, manifest.workspace_name, manifest.agent_name)
            self._primes = asyncio.create_task(asyncio.to_thread(_primes, *names), name="SSH host key")
            self._named.set()

    async def serve(self, stream: TailnetStream) -> None:
        """One connection to port 1 or 22."""
        if self._closed:
            return
        if self._making is None:
            self._making = asyncio.create_task(self._make(), name="SSH server")
        server = await asyncio.shield(self._making)
        await server.serve(stream)

    async def aclose(self) -> None:
        """End every connection, within some seconds. Idempotent."""
        self._closed = True
        if self._making is not None:
            server = await asyncio.shield(self._making)
            await server.aclose()

    async def _make(self) -> SshServer:
        await asyncio.to_thread(importlib.import_module, "agent.ssh.server")
        from agent.ssh.options import Options
        from agent.ssh.server import SshServer

        self._server = SshServer(
            self._context,
            self._clock,
            host_key=self._host_key,
            home=self._home,
            options=Options(
                self._config.ssh_max_timeout,
                self._config.block_file_transfer,
                self._config.block_local_port_forwarding,
                self._config.block_reverse_port_forwarding,
            ),
            greeting=self._greeting,
            reports=self._reports,
        )
        return self._server

    async def _host_key(self) -> bytes:
        await self._named.wait()
        assert self._primes is not None
        primes = await asyncio.shield(self._primes)
        return await asyncio.to_thread(primes.pem)

    def _greeting(self) -> Greeting:
        from agent.ssh.greeting import Greeting

        manifest = self._manifest()
        return Greeting(self._banners(), manifest.motd_path if manifest is not None else "", self._home)


def _primes(owner: str, workspace: str, agent: str) -> RsaPrimes:
    """Called in a thread."""
    from agent.ssh.hostkey import derive, seed_of

    return derive(seed_of(owner, workspace, agent))
