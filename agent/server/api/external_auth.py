"""Tokens for git hosts: workspaces fetch them, users store them, owners configure the hosts (agent-api.md §2.4)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from aiohttp import web

from agent.clock import Clock, wait_for
from agent.server import external_auth as rules
from agent.server.errors import ApiError, Validation, hidden, invalid
from agent.server.events import Events, Subscription
from agent.server.external_auth import Provider, ProviderError, ProviderNotFoundError
from agent.server.http import Call, no_content, reply
from agent.server.longlived import LongLived
from agent.server.routes import EMPTY, Auth, Query, Route
from agent.server.store import Database
from agent.server.store import external_auth as store
from agent.server.wire import Body, Time, optional_time

LISTEN_PERIOD = 1.0
"""Seconds after which a listening request looks for a token unasked, and whether its client is still there."""
MAX_TOKEN = 16 * 1024


class GitToken(msgspec.Struct):
    """The answer to a workspace: a token, or where its owner gets one."""

    access_token: str = ""
    token_extra: Any = None
    url: str = ""
    type: str = ""
    username: str = ""
    password: str = ""


class ProviderOut(msgspec.Struct):
    """A configured provider."""

    id: str
    type: str
    regex: str
    display_name: str


class LinkOut(msgspec.Struct, omit_defaults=True):
    """That the user stored a token; never the token."""

    provider_id: str
    created_at: Time
    updated_at: Time
    expires: Time | msgspec.UnsetType = msgspec.UNSET


class ExternalAuthList(msgspec.Struct):
    """All providers, and those that the user has a token for."""

    providers: list[ProviderOut]
    links: list[LinkOut]


class PutProvider(Body):
    """Body of PUT external-auth/{provider}."""

    required = ("type",)
    type: str = ""
    regex: str = ""
    display_name: str = ""


class PutToken(Body):
    """Body of PUT external-auth/{provider}/token."""

    required = ("access_token",)
    access_token: str = ""
    token_extra: dict[str, Any] | None = None
    expires: datetime | None = None


class ExternalAuth:
    """`access_url` is where people find this server, without a slash at the end."""

    def __init__(
        self, database: Database, events: Events, clock: Clock, long_lived: LongLived, access_url: str
    ) -> None:
        self._database, self._events, self._clock, self._long_lived = database, events, clock, long_lived
        self._access_url = access_url

    def routes(self) -> list[Route]:
        base = "/api/v2/external-auth"
        return [
            *(
                Route(
                    method="GET",
                    path=f"/api/v2/workspaceagents/me/{name}",
                    handler=self.for_workspace,
                    summary=summary,
                    auth=Auth.AGENT,
                    query=(
                        Query("match", "URL that git wants to log in to"),
                        Query("url", "The same under its old name"),
                        Query("id", "Id of a provider"),
                        Query("listen", "Wait until there is a token", "presence"),
                    ),
                    responses={200: GitToken},
                )
                for name, summary in (
                    ("external-auth", "The owner's token for a git host"),
                    ("gitauth", "The same under its old name"),
                )
            ),
            Route(
                method="GET",
                path=base,
                handler=self.list,
                summary="Configured providers, and which of them the user has a token for",
                responses={200: ExternalAuthList},
            ),
            Route(
                method="PUT",
                path=base + "/{provider}",
                handler=self.put_provider,
                summary="Configure a provider",
                owner_only=True,
                request=PutProvider,
                responses={200: ProviderOut},
            ),
            Route(
                method="DELETE",
                path=base + "/{provider}",
                handler=self.delete_provider,
                summary="Remove a provider with all tokens for it",
                owner_only=True,
                responses={204: EMPTY},
            ),
            Route(
                method="PUT",
                path=base + "/{provider}/token",
                handler=self.put_token,
                summary="Store the user's own token for a provider",
                request=PutToken,
                responses={204: EMPTY},
            ),
            Route(
                method="DELETE",
                path=base + "/{provider}/token",
                handler=self.delete_token,
                summary="Forget the user's own token for a provider",
                responses={204: EMPTY},
            ),
        ]

    async def for_workspace(self, call: Call) -> web.StreamResponse:
        """§2.4, texts included."""
        query = call.query
        provider_id, match = query.get("id", ""), query.get("match", "") or query.get("url", "")
        if not provider_id and not match:
            raise ApiError(400, "'url' or 'id' must be provided!")
        if provider_id and match:
            raise ApiError(400, "'url' and 'id' cannot be provided together!")
        try:
            provider = rules.choose(await store.providers(self._database), provider_id, match)
        except ProviderNotFoundError as error:
            message = f'No matching external auth provider found in Coder for the url "{match}".'
            raise ApiError(404, message, str(error)) from error
        owner = call.agent.owner_id
        with self._events.subscribe(_topic(owner)) as subscription, self._long_lived.ending() as ending:
            while (found := await self._token(owner, provider)) is None and "listen" in query:
                await self._next(call, subscription, ending)
        return reply(found or GitToken(url=f"{self._access_url}/external-auth/{provider.id}"))

    async def list(self, call: Call) -> web.StreamResponse:
        providers = [_shown(provider) for provider in await store.providers(self._database)]
        links = [
            LinkOut(
                link.provider_id,
                created_at=optional_time(link.created_at) or "",
                updated_at=optional_time(link.updated_at) or "",
                expires=optional_time(link.expires_at),
            )
            for link in await store.links(self._database, call.user.id)
        ]
        return reply(ExternalAuthList(providers, links))

    async def put_provider(self, call: Call) -> web.StreamResponse:
        body = await call.body(PutProvider)
        provider = Provider(call.path("provider"), body.type, body.regex, body.display_name or call.path("provider"))
        try:
            rules.check_provider(provider)
        except ProviderError as error:
            raise invalid(Validation(error.field, str(error))) from error
        await store.put_provider(self._database, provider, self._now())
        return reply(_shown(provider))

    async def delete_provider(self, call: Call) -> web.StreamResponse:
        if not await store.delete_provider(self._database, call.path("provider")):
            raise hidden()
        return no_content()

    async def put_token(self, call: Call) -> web.StreamResponse:
        body = await call.body(PutToken)
        if len(body.access_token) > MAX_TOKEN:
            raise invalid(Validation("access_token", f"longer than {MAX_TOKEN} characters"))
        expires = None if body.expires is None else round(body.expires.timestamp() * 1_000_000)
        user, provider = call.user.id, call.path("provider")
        try:
            await store.put_link(
                self._database, user, provider, body.access_token, body.token_extra, expires, self._now()
            )
        except LookupError as error:
            raise hidden() from error
        self._events.publish(_topic(user))
        return no_content()

    async def delete_token(self, call: Call) -> web.StreamResponse:
        if not await store.delete_link(self._database, call.user.id, call.path("provider")):
            raise hidden()
        return no_content()

    async def _token(self, owner: UUID, provider: Provider) -> GitToken | None:
        link = await store.usable_link(self._database, owner, provider.id, self._now())
        if link is None:
            return None
        username, password = rules.git_credentials(provider.type, link.access_token)
        return GitToken(
            access_token=link.access_token,
            token_extra=link.token_extra,
            type=provider.type,
            username=username,
            password=password,
        )

    async def _next(self, call: Call, subscription: Subscription, ending: asyncio.Event) -> None:
        """Until it is worth to look again. A client that went away ends the request: nothing else would."""
        with suppress(TimeoutError):
            await wait_for(self._clock, subscription.wait(), LISTEN_PERIOD)
        transport = call.request.transport
        if ending.is_set() or transport is None or transport.is_closing():
            raise ApiError(503, "The server is stopping, or the client went away.")

    def _now(self) -> int:
        return self._clock.wall() // 1000


def _topic(user: UUID) -> str:
    return f"external-auth:{user}"


def _shown(provider: Provider) -> ProviderOut:
    return ProviderOut(provider.id, provider.type, provider.regex, provider.display_name)
