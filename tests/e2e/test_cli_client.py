"""The commands' client against a scripted server on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent.cli.client import ApiError, Client
from agent.cli.errors import CliError
from agent.cli.session import Session

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[Client]]


class NoWaiting:
    def now(self) -> float:
        return 0.0

    def wall(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        return


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []

    async def start(handler: Handler) -> Client:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app, host="127.0.0.1")
        servers.append(server)
        await server.start_server()
        return Client(Session(str(server.make_url("/")).rstrip("/"), "token"), NoWaiting())

    yield start
    for server in servers:
        await server.close()


def lines(*ids: int) -> str:
    return json.dumps([{"id": number, "output": f"line {number}"} for number in ids]) + "\n"


async def test_following_goes_on_where_a_broken_connection_stopped(serve: Serve) -> None:
    dialled: list[str] = []

    async def follow(request: web.Request) -> web.StreamResponse:
        dialled.append(request.query["after"])
        if len(dialled) == 3:
            return web.json_response({"message": "busy"}, status=503)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if len(dialled) == 1:
            await socket.send_str(lines(1, 2))
            await socket.send_str(lines(7))
            assert request.transport is not None
            request.transport.abort()
        elif len(dialled) == 2:
            await socket.send_str(lines(8))
            await socket.close(code=1001, message=b"liveness probe failed")
        else:
            await socket.send_str(lines(9))
            await socket.close()
        return socket

    async with await serve(follow) as client:
        received = [line["id"] async for line in client.follow_logs("id")]
    assert received == [1, 2, 7, 8, 9]
    assert dialled == ["0", "7", "8", "8"]


async def test_following_what_is_not_there_ends_with_the_servers_reason(serve: Serve) -> None:
    async def missing(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "Agent doesn't exist with that id."}, status=404)

    async with await serve(missing) as client:
        with pytest.raises(ApiError, match="Agent doesn't exist"):
            await anext(client.follow_logs("id"))


async def test_a_refusal_is_told_with_its_detail(serve: Serve) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "Forbidden.", "detail": "owners only"}, status=403)

    async with await serve(refuse) as client:
        with pytest.raises(ApiError, match="Forbidden: owners only") as caught:
            await client.get("users")
    assert caught.value.status == 403


async def test_a_lost_session_says_how_to_log_in(serve: Serve) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "signed out"}, status=401)

    async with await serve(refuse) as client:
        with pytest.raises(CliError, match=f"workspace-agent login {client.url}"):
            await client.get("agents")


async def test_something_else_that_answers_is_told_apart(serve: Serve) -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>", content_type="text/html")

    async with await serve(page) as client:
        with pytest.raises(CliError, match=r"200 without JSON \(text/html\): is it a workspace-agent server"):
            await client.get("agents")


async def test_damaged_json_is_told(serve: Serve) -> None:
    async def damaged(request: web.Request) -> web.StreamResponse:
        return web.Response(text='{"message": ', content_type="application/json", status=500)

    async with await serve(damaged) as client:
        with pytest.raises(CliError, match="answered 500 without JSON"):
            await client.get("agents")


async def test_nobody_listening_names_the_address() -> None:
    async with Client(Session("http://127.0.0.1:1", "token")) as client:
        with pytest.raises(CliError, match=r"cannot reach http://127.0.0.1:1: .*is the server running"):
            await client.get("agents")


async def test_the_token_goes_to_no_other_place(serve: Serve) -> None:
    seen: list[str] = []

    async def other(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Coder-Session-Token", ""))
        return web.json_response({})

    async with await serve(other) as elsewhere:

        async def redirect(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{elsewhere.url}/api/v2/agents")

        async with await serve(redirect) as client:
            with pytest.raises(CliError):
                await client.get("agents")
    assert seen == []


async def test_a_login_link_gives_a_token_once(serve: Serve) -> None:
    async def login(request: web.Request) -> web.StreamResponse:
        response = web.Response(status=302, headers={"Location": "/"})
        if request.query["code"] == "fresh":
            response.set_cookie("coder_session_token", "0123456789-secret")
        return response

    async with await serve(login) as client:
        assert await client.redeem("/login?code=fresh") == "0123456789-secret"
        with pytest.raises(CliError, match="used before"):
            await client.redeem("/login?code=stale")
