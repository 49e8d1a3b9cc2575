"""Endpoints as data: what serves a request, and what the OpenAPI description says about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web

from agent.server.wire import Body

if TYPE_CHECKING:
    from agent.server.http import Call

Handler = Callable[["Call"], Awaitable[web.StreamResponse]]


class Auth(Enum):
    """Whose token a route wants (agent-api.md §1.3, §3)."""

    NONE = "none"
    USER = "user"
    USER_OR_PROXY = "user or proxy"
    """The routes of §3: as USER, with another text when there is no valid token."""
    TERMINAL = "terminal"
    """As USER; who is nobody must not learn that there is anything (terminal-ssh-http.md §1.10)."""
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter. `presence` ones count as set whatever their value."""

    name: str
    description: str
    type: Literal["string", "integer", "uuid", "presence"] = "string"


@dataclass(frozen=True, slots=True)
class Text:
    """A body that is no JSON."""

    media_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint.

    `path` is absolute, with `{name}` for a segment. `responses` maps each success status to the type of its JSON (None
    is the JSON value `null`, a tuple means any of its types), to a `Text`, or to `EMPTY`. Errors need no declaration.
    `body_limit` is in bytes; `rate_limit` replaces the server's requests per minute. A `websocket` route's Origin is
    checked.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    auth: Auth = Auth.USER
    owner_only: bool = False
    query: Sequence[Query] = ()
    request: type[Body] | Text | None = None
    responses: Mapping[int, Any] = field(default_factory=lambda: {200: None})
    body_limit: int = 1024 * 1024
    rate_limit: int | None = None
    websocket: bool = False


class Empty:
    """No body at all."""


EMPTY = Empty()
