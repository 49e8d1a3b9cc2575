"""Where a port is found: the origin that belongs to one port of one agent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit
from uuid import UUID

LOWEST_PORT: Final = 9
"""Below are the services of the agent itself, and nothing that one opens in a browser."""
HIGHEST_PORT: Final = 65535
COOKIE: Final = "workspace_port"
"""How the names of our cookies begin, after `__Host-`."""
_LABEL: Final = re.compile(r"([1-9][0-9]{0,4})--([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)


class OriginsUnavailableError(Exception):
    """There is no origin for the port; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Origin:
    """`netloc` is the host, with a port where that is not the scheme's own.

    `lasting` ones never belong to another port; what a browser keeps for them may stay.
    """

    agent: UUID
    port: int
    scheme: str
    netloc: str
    lasting: bool = True

    @property
    def url(self) -> str:
        """As browsers write an origin: without a slash at the end."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def listening_port(self) -> int:
        """What the browser connects to."""
        return urlsplit(self.url).port or (443 if self.secure else 80)

    @property
    def cookie(self) -> str:
        """The name of the cookie with the pass. Cookies know no ports, so that the name has it; and with `__Host-` no
        other host can set it."""
        return f"{'__Host-' if self.secure else ''}{COOKIE}_{self.listening_port}"


class PortOrigins(Protocol):
    """Gives out origins."""

    async def open(self, agent: UUID, port: int, host: str) -> Origin:
        """The port's origin, ready to be asked. `host` is how the browser calls the control plane.

        Raises `OriginsUnavailableError`.
        """

    async def aclose(self) -> None:
        """Close what is open; idempotent."""


class WildcardOrigins:
    """A host for each port, below one domain: `8080--<agent>.ws.example.com`, all served by the control plane itself.

    `url` is like `https://*.ws.example.com`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url.lower())
        self._scheme = parts.scheme
        self._domain, colon, number = parts.netloc.removeprefix("*").partition(":")
        standard = {"http": "80", "https": "443"}[parts.scheme]
        self._port = colon + number if number and number != standard else ""

    async def open(self, agent: UUID, port: int, host: str) -> Origin:
        return self._origin(agent, port)

    async def aclose(self) -> None:
        """Nothing was opened."""

    def covers(self, host: str) -> bool:
        """Whether a `Host` is one of these, if perhaps of no port."""
        return host.lower().partition(":")[0].endswith(self._domain)

    def find(self, host: str) -> Origin | None:
        """Whose origin a `Host` names, if it is one. The port that it names is the business of proxies."""
        label = _LABEL.fullmatch(host.lower().partition(":")[0].removesuffix(self._domain))
        if label is None or not self.covers(host) or not LOWEST_PORT <= int(label[1]) <= HIGHEST_PORT:
            return None
        return self._origin(UUID(label[2]), int(label[1]))

    def _origin(self, agent: UUID, port: int) -> Origin:
        return Origin(agent, port, self._scheme, f"{port}--{agent}{self._domain}{self._port}")
