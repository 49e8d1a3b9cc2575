"""What the operator decides about a control plane."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent.api.versions import CURRENT, OLDEST, ApiVersion

DEFAULT_PORT = 7080
MIB = 1024 * 1024
_WILDCARD = re.compile(r"\*(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", re.ASCII)


class ServerConfigError(ValueError):
    """A setting cannot be used; the text names it and says what would do."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a server. Durations are in seconds, sizes in bytes."""

    data_dir: Path
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    port_is_fixed: bool = False
    """A port that was asked for by name is used or refused; the default one gives way to a free one."""
    access_url: str = ""
    """Where agents and browsers find the server; empty: `http://` and what it listens on."""
    workspace_url: str = ""
    """Where ports of workspaces are opened in the browser: `https://*.ws.example.com`, whose requests all come to this
    server; empty: each has a socket of its own on `address`."""
    stun_port: int | None = None
    """UDP port of the STUN responder, on `address`; None: there is none."""
    derp_map: Path | None = None
    """The whole DERP map (tailnet.md §5.8) as YAML or JSON; None: the relay that the server embeds."""
    disable_direct: bool = False
    """Agents and clients use relays only."""
    force_websockets: bool = False
    """Agents and clients reach relays over WebSockets at once, for proxies that stop `Upgrade: DERP`."""
    database: str = ""
    """Address of the database; empty: `server.db` in `data_dir`."""
    api_version: ApiVersion = CURRENT
    """The newest version of the agent API that agents are offered (agent-api.md §7)."""
    identity: Path | None = None
    """What is decided about cloud identities (`agent.server.identity.config`), as YAML or JSON; None: the defaults."""
    agent_log_limit: int = 64 * MIB
    """Bytes of log lines that one agent may store (the Go server: 1 MiB)."""
    ping_period: float = 15.0
    """Between two pings of a monitored agent connection (agent-api.md §6.7)."""
    stats_interval: float = 30.0
    """What agents are told about how often to report stats."""
    rate_limit: int = 512
    """Requests per minute of one caller to one path; 0 or less: unlimited."""
    session_lifetime: float = 7 * 86400.0
    """A session that is not used for so long ends."""
    login_link_lifetime: float = 15 * 60.0
    stop_limit: float = 600.0
    """A stop build waits so long for the agent to report that it is off."""
    retention: float = 7 * 86400.0
    """How long data of deleted workspaces and old measurements are kept."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServerConfigError(f"port {self.port} is no port: it must be from 0 (any free one) to 65535")
        if self.stun_port is not None and not 0 <= self.stun_port <= 65535:
            raise ServerConfigError(f"STUN port {self.stun_port} is no port: it must be from 0 (any free one) to 65535")
        if self.access_url:
            parts = urlsplit(self.access_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ServerConfigError(f"access URL {self.access_url!r} must look like https://workspaces.example.com")
        if self.workspace_url:
            self._check_workspace_url()
        if not OLDEST <= self.api_version <= CURRENT:
            raise ServerConfigError(f"API version {self.api_version} is not offered: use {OLDEST} to {CURRENT}")
        for name in ("ping_period", "stats_interval", "session_lifetime", "login_link_lifetime", "stop_limit"):
            if getattr(self, name) <= 0:
                raise ServerConfigError(f"{name} must be above 0 seconds")

    def _check_workspace_url(self) -> None:
        try:
            parts = urlsplit(self.workspace_url)
            usable = parts.scheme in ("http", "https") and _WILDCARD.fullmatch(parts.hostname or "") is not None
            _ = parts.port
        except ValueError:
            usable = False
        if not usable or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
            raise ServerConfigError(f"workspace URL {self.workspace_url!r} must look like https://*.ws.example.com")
        if f".{urlsplit(self.access_url).hostname or ''}".endswith((parts.hostname or "").removeprefix("*")):
            raise ServerConfigError(
                f"workspace URL {self.workspace_url!r} covers the access URL {self.access_url!r}: what runs in "
                "workspaces would share its host; give them a domain of their own"
            )

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_dir.absolute() / 'server.db'}"
