"""The OpenAPI description, from the same routes and models that serve the requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from agent.server.errors import ErrorBody
from agent.server.http import API, Call, reply
from agent.server.routes import Auth, Empty, Query, Route, Text

_SECURITY: dict[Auth, list[dict[str, list[str]]]] = {
    Auth.NONE: [],
    Auth.USER: [{"UserToken": []}],
    Auth.USER_OR_PROXY: [{"UserToken": []}],
    Auth.TERMINAL: [{"UserToken": []}],
    Auth.AGENT: [{"AgentToken": []}],
}
_QUERY_SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer", "minimum": 0},
    "uuid": {"type": "string", "format": "uuid"},
    "presence": {"type": "string"},
}


def describe(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The description of all routes under `/api/v2`; bodies are named after the classes that they are made of."""
    routes = [route for route in routes if route.path.startswith(API)]
    kinds = [kind for route in routes for kind in _json_kinds((*route.responses.values(), route.request))]
    schemas, components = msgspec.json.schema_components(
        [ErrorBody, *kinds], ref_template="#/components/schemas/{name}"
    )
    error, by_kind = schemas[0], list(zip(kinds, schemas[1:], strict=True))

    def schema(kind: Any) -> dict[str, Any]:
        if isinstance(kind, tuple):
            return {"anyOf": [schema(one) for one in kind]}
        return next(found for known, found in by_kind if known is kind)

    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation: dict[str, Any] = {
            "operationId": _operation_id(route),
            "summary": route.summary,
            "tags": [route.path.removeprefix(API).split("/")[0]],
            "security": _SECURITY[route.auth],
            "parameters": [*_path_parameters(route.path), *map(_query_parameter, route.query)],
            "responses": {
                **{str(status): _response(status, kind, schema) for status, kind in route.responses.items()},
                "default": {"description": "Refused", "content": {"application/json": {"schema": error}}},
            },
        }
        if route.websocket:
            operation["responses"]["101"] = {"description": "The connection is a WebSocket from here on"}
        if isinstance(route.request, Text):
            content = {route.request.media_type: {"schema": {"type": "string"}}}
            operation["requestBody"] = {"required": True, "content": content}
        elif route.request is not None:
            content = {"application/json": {"schema": schema(route.request)}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "workspace-agent", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                name: {"type": "apiKey", "in": "header", "name": "Coder-Session-Token", "description": text}
                for name, text in (("UserToken", "A user's session or token"), ("AgentToken", "An agent's token"))
            },
        },
    }


class OpenApi:
    """Serves the description of the other routes and of itself."""

    def __init__(self, routes: Iterable[Route], version: str) -> None:
        own = Route(
            method="GET",
            path="/api/v2/openapi.json",
            handler=self.show,
            summary="This description",
            auth=Auth.NONE,
            responses={200: dict[str, Any]},
        )
        self.routes = [*routes, own]
        self._answer = describe(self.routes, version)

    async def show(self, _call: Call) -> web.Response:
        return reply(self._answer)


def _json_kinds(kinds: Iterable[Any]) -> Iterator[Any]:
    for kind in kinds:
        if isinstance(kind, tuple):
            yield from kind
        elif kind is not None and not isinstance(kind, Text | Empty):
            yield kind


def _operation_id(route: Route) -> str:
    words = re.findall(r"[a-z0-9]+", route.path.removeprefix(API).lower())
    return "_".join([route.method.lower(), *words])


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "format": "uuid"} if name == "workspaceagent" else {"type": "string"},
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _query_parameter(query: Query) -> dict[str, Any]:
    schema = _QUERY_SCHEMAS[query.type]
    return {"name": query.name, "in": "query", "description": query.description, "schema": schema}


def _response(status: int, kind: Any, schema: Any) -> dict[str, Any]:
    description = HTTPStatus(status).phrase
    if isinstance(kind, Empty):
        return {"description": description}
    if isinstance(kind, Text):
        return {"description": description, "content": {kind.media_type: {"schema": {"type": "string"}}}}
    content = {"type": "null"} if kind is None else schema(kind)
    return {"description": description, "content": {"application/json": {"schema": content}}}
