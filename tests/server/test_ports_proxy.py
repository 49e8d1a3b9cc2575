"""Ports of a workspace through a whole server, with a workspace in memory."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agent.server.ports import Origin, PortAccess
from agent.testing import ManualClock
from agent.testing.streams import MemoryStream
from tests.server.ports import PORT, Browser, Workspace, ports, until


async def mirror(request: web.BaseRequest) -> web.StreamResponse:
    """Answers with what it was asked, and does what the path says."""
    head = "\n".join(f"{name.decode()}: {value.decode()}" for name, value in request.raw_headers)
    return web.Response(text=f"{request.method} {request.raw_path}\n{head}\n\n{(await request.read()).decode()}")


@pytest.fixture
def workspace() -> Workspace:
    return Workspace(mirror)


@pytest.fixture
async def browser(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Browser]:
    async with ports(tmp_path, workspace, monkeypatch) as browser:
        yield browser


# ---- what goes through


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/?",
        "/a/../b/./c//d",
        "//evil.example/x",
        "/%7euser/%2F%2f?q=%20+a&b=c%26#",
        "/x?u=http://a/b?c",
        "/;p=1,2",
    ],
)
async def test_targets_are_passed_byte_by_byte(browser: Browser, target: str) -> None:
    wanted = target.partition("#")[0] if "#" in target else target
    status, _, body = await browser.fetch("GET", wanted)
    assert status == 200
    assert body.decode().splitlines()[0] == f"GET {wanted}"


async def test_what_the_workspace_sees(browser: Browser) -> None:
    browser.cookies |= {"theirs": "1=2", "coder_session_token": browser.server.user}
    headers = {
        "Origin": browser.origin,
        "Referer": f"{browser.origin}/page?x",
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Coder-Session-Token": browser.server.user,
        "X-Own": "kept",
    }
    _, _, body = await browser.fetch("POST", "/form", headers, data=b"hello")
    head, _, sent = body.decode().partition("\n\n")
    seen = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    assert sent == "hello"
    assert seen["Host"] == "localhost:8080"
    assert seen["Origin"] == "http://localhost:8080"
    assert seen["Referer"] == "http://localhost:8080/page?x"
    assert seen["Cookie"] == "theirs=1=2"
    assert seen["X-Own"] == "kept"
    assert (seen["X-Forwarded-Host"], seen["X-Forwarded-Proto"]) == (browser.host, "http")
    assert (seen["X-Forwarded-For"], seen["X-Forwarded-Port"]) == ("127.0.0.1", "80")
    assert not {"Forwarded", "X-Hop", "Coder-Session-Token"} & set(seen)
    assert browser.server.user not in body.decode()


async def test_what_the_browser_sees(browser: Browser, workspace: Workspace) -> None:
    async def serve(_request: web.BaseRequest) -> web.StreamResponse:
        response = web.Response(status=302, reason="Over There", body=b"x", content_type="text/plain")
        response.headers["Location"] = "http://localhost:8080/login?next=/"
        for cookie in ("a=1; Domain=ws.test; Path=/", "coder_session_token=evil", "=coder_session_token=evil", "b=2"):
            response.headers.add("Set-Cookie", cookie)
        response.headers["Clear-Site-Data"] = '"cookies"'
        return response

    workspace.serve = serve
    async with browser.request("GET", "/") as answer:
        assert (answer.status, answer.reason) == (302, "Over There")
        assert answer.headers["Location"] == f"{browser.origin}/login?next=/"
        assert answer.headers.getall("Set-Cookie") == ["a=1; Path=/", "b=2"]
        assert "Clear-Site-Data" not in answer.headers
        assert not [name for name in answer.headers if name.lower().startswith("x-coder")]


async def test_nothing_is_added_and_bodies_stay_packed(browser: Browser, workspace: Workspace) -> None:
    packed = gzip.compress(b"text" * 1000)

    async def raw(stream: MemoryStream) -> None:
        await stream.write(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nX-Latin: caf\xe9\r\nContent-Length: %d\r\n\r\n" % len(packed)
            + packed
        )

    workspace.raw = raw
    async with browser.request("GET", "/") as answer:
        assert await answer.read() == b"text" * 1000  # unpacked by this client
        assert "Server" not in answer.headers
        assert "Content-Type" not in answer.headers
        assert answer.headers["X-Latin"] == "café"
    workspace.raw = None

    async def length(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=f"{len(await request.read())} {request.headers['Content-Encoding']}")

    workspace.serve = length
    _, _, body = await browser.fetch("POST", "/", {"Content-Encoding": "gzip"}, data=packed)
    assert body.decode() == f"{len(packed)} gzip"


async def test_answers_without_a_body(browser: Browser, workspace: Workspace) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        status = int(request.query["status"])
        return web.Response(status=status, headers={"ETag": '"1"'}, body=b"x" * 7 if status == 200 else None)

    workspace.serve = serve
    for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 200)):
        found, headers, body = await browser.fetch(method, f"/?status={status}")
        assert (found, headers["ETag"]) == (status, '"1"')
        assert body == (b"x" * 7 if (method, status) == ("GET", 200) else b"")
        if status == 200:
            assert headers["Content-Length"] == "7"


async def test_large_bodies_both_ways_at_their_own_pace(browser: Browser, workspace: Workspace) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    async def upload() -> AsyncIterator[bytes]:
        for number in range(64):
            piece = bytes([number]) * 65536
            sent.update(piece)
            yield piece

    workspace.serve = serve
    sent, got = hashlib.sha256(), hashlib.sha256()
    async with browser.request("PUT", "/", data=upload()) as answer:
        async for piece in answer.content.iter_any():
            got.update(piece)
    assert got.digest() == sent.digest()


async def test_a_reader_that_stops_stops_the_writer(browser: Browser, workspace: Workspace) -> None:
    written = 0

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(65536))
            written += 65536

    workspace.serve = serve
    async with browser.request("GET", "/") as answer:
        await answer.content.readany()
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.3)
        assert written < 16 * 1024 * 1024
        answer.close()


async def test_events_arrive_one_by_one_and_end_with_the_browser(browser: Browser, workspace: Workspace) -> None:
    more, ended = asyncio.Event(), asyncio.Event()

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: 2\n\n")
        while request.transport is not None:
            await asyncio.sleep(0.01)
        ended.set()
        return response

    workspace.serve = serve
    async with browser.request("GET", "/") as answer:
        assert await answer.content.readany() == b"data: 1\n\n"
        more.set()
        assert await answer.content.readany() == b"data: 2\n\n"
        answer.close()
    await asyncio.wait_for(ended.wait(), 5)


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(browser: Browser, workspace: Workspace) -> None:
    async def raw(stream: MemoryStream) -> None:
        await stream.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        stream.close()

    workspace.raw = raw
    with pytest.raises(aiohttp.ClientError):
        await browser.fetch("GET", "/")


async def test_a_websocket(browser: Browser, workspace: Workspace) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["Origin"] == "http://localhost:8080"
        socket = web.WebSocketResponse(protocols=("vite-hmr",), max_msg_size=0)
        await socket.prepare(request)
        await socket.send_str("welcome")
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4321, message=b"as you wish")
            elif message.type is aiohttp.WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            else:
                await socket.send_str(message.data)
        return socket

    workspace.serve = serve
    options = browser.options({"Origin": browser.origin})
    async with browser.server.http.ws_connect(
        browser.server.url + "/hmr", headers=options["headers"], protocols=("other", "vite-hmr"), max_msg_size=0
    ) as socket:
        assert socket.protocol == "vite-hmr"
        assert await socket.receive_str() == "welcome"
        await socket.send_bytes(bytes(8 * 1024 * 1024))
        assert len(await socket.receive_bytes()) == 8 * 1024 * 1024
        await socket.send_str("bye")
        message = await socket.receive()
        assert (message.data, message.extra) == (4321, "as you wish")


async def test_a_websocket_that_is_declined(browser: Browser) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await browser.server.http.ws_connect(browser.server.url + "/", headers=browser.options()["headers"])
    assert caught.value.status == 200


# ---- who may


async def test_without_a_pass_nothing_is_dialled(browser: Browser, workspace: Workspace) -> None:
    stranger = Browser(browser.server, browser.agent, PORT)
    workspace.dials.clear()
    for cookies in ({}, {"coder_session_token": browser.server.user}, {"workspace_port_80": "nonsense"}):
        stranger.cookies = cookies
        status, _, body = await stranger.fetch("GET", "/", {"Accept": "text/html"})
        assert status == 401
        assert b"Go to the agent" in body
    assert not workspace.dials


async def test_a_ticket_is_good_once_and_for_its_port(browser: Browser) -> None:
    target = await browser.ticket()
    other = Browser(browser.server, browser.agent, 8081)
    stranger = Browser(browser.server, browser.agent, PORT)
    assert (await other.fetch("GET", target))[0] == 403
    assert (await stranger.fetch("GET", target))[0] == 403, "it was used up where it did not belong"
    target = await browser.ticket()
    status, headers, _ = await stranger.fetch("GET", target + "&kept=1")
    assert (status, headers["Location"]) == (303, f"{browser.origin}/?kept=1")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Lax" in headers["Set-Cookie"]
    assert (await stranger.fetch("GET", target))[0] == 403
    status, headers, _ = await browser.fetch("GET", target)
    assert status == 303, "who is in already only gets rid of it"
    assert "Set-Cookie" not in headers
    target = await browser.ticket()
    assert (await browser.fetch("HEAD", target))[0] == 405
    assert (await browser.fetch("GET", target))[0] == 303
    assert (await stranger.fetch("GET", target))[0] == 403, "it was used up by who was in already"


async def test_a_pass_is_good_for_its_own_origin(browser: Browser) -> None:
    other = Browser(browser.server, browser.agent, 8081, dict(browser.cookies))
    assert (await other.fetch("GET", "/"))[0] == 401


async def test_agents_of_others(browser: Browser) -> None:
    eve = await browser.server.new_member("eve")
    assert await browser.ticket(eve, expect=404)
    own = Browser(browser.server, await browser.server.new_agent("evil", token=eve), PORT)
    target = await own.ticket(eve)
    assert (await browser.fetch("GET", "/"))[0] == 200
    stranger = Browser(browser.server, browser.agent, PORT)
    assert (await stranger.fetch("GET", target))[0] == 403


async def test_who_logged_out_is_out(browser: Browser) -> None:
    eve = await browser.server.new_member("eve", role="owner")
    browser.cookies.clear()
    await browser.enter(eve)
    assert (await browser.fetch("GET", "/"))[0] == 200
    unused = await browser.ticket(eve)
    await browser.server.call("POST", "/api/v2/users/logout", token=eve)
    assert (await browser.fetch("GET", "/"))[0] == 401
    assert (await browser.fetch("GET", unused))[0] == 403


async def test_a_deleted_agent(browser: Browser) -> None:
    await browser.server.call("DELETE", f"/api/v2/agents/{browser.agent.id}", expect=204)
    assert (await browser.fetch("GET", "/"))[0] == 401


@pytest.mark.parametrize("port", ["0", "1", "4", "8", "65536", "99999999999999999999", "-1", "x", "\u0663\u0663\u0663"])
async def test_ports_that_are_none(browser: Browser, port: str) -> None:
    await browser.server.call("POST", f"/api/v2/agents/{browser.agent.id}/ports/{port}/tickets", expect=400)
    assert (await browser.fetch("GET", "/", {"Host": f"{port}--{browser.agent.id}.ws.test"}))[0] in (400, 404)


async def test_foreign_pages(browser: Browser, workspace: Workspace) -> None:
    workspace.dials.clear()
    for origin in ("http://evil.test", "null", f"http://8081--{browser.agent.id}.ws.test", browser.server.url):
        assert (await browser.fetch("POST", "/", {"Origin": origin}))[0] == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await browser.server.http.ws_connect(
                browser.server.url + "/", headers={**browser.options()["headers"], "Origin": origin}
            )
        assert caught.value.status == 403
    for frame in ("iframe", "object", "embed"):
        headers = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": frame}
        assert (await browser.fetch("GET", "/", headers))[0] == 403
    assert not workspace.dials
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await browser.fetch("GET", "/", headers))[0] == 200


# ---- when it does not work


async def test_nothing_listens(browser: Browser) -> None:
    other = Browser(browser.server, browser.agent, 8081)
    await other.enter()
    status, headers, body = await other.fetch("GET", "/", {"Accept": "text/html,*/*"})
    assert (status, headers["Retry-After"]) == (502, "2")
    assert b"Nothing listens on port 8081" in body
    assert b'http-equiv="refresh"' in body
    assert b"refresh" not in (await other.fetch("POST", "/", {"Accept": "text/html"}))[2]


async def test_the_agent_is_away(browser: Browser, workspace: Workspace) -> None:
    workspace.away = "dial workspace agent: the agent does not answer"
    status, _, body = await browser.fetch("GET", "/")
    assert status == 503
    assert b"the agent does not answer" in body


async def test_no_http(browser: Browser, workspace: Workspace) -> None:
    async def raw(stream: MemoryStream) -> None:
        await stream.write(b"SSH-2.0-OpenSSH_9\r\n")

    workspace.raw = raw
    status, _, body = await browser.fetch("GET", "/")
    assert status == 502
    assert b"does not answer with HTTP" in body
    assert b"Traceback" not in body


async def test_the_control_plane_is_not_there(browser: Browser) -> None:
    _, _, body = await browser.fetch("GET", "/api/v2/buildinfo")
    assert body.startswith(b"GET /api/v2/buildinfo\n"), "it is the workspace's"
    stranger = Browser(browser.server, browser.agent, PORT)
    assert (await stranger.fetch("GET", "/api/v2/buildinfo"))[0] == 401
    assert (await stranger.fetch("GET", "/", {"Host": "nothing.ws.test"}))[0] == 404


async def test_a_websocket_ends_with_the_permission(
    browser: Browser, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.server.ports.proxy.RECHECK", 0.1)
    monkeypatch.setattr("agent.server.ports.proxy.LOOK", 0.05)
    gone = asyncio.Event()

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("welcome")
        await socket.receive()
        gone.set()
        return socket

    workspace.serve = serve
    member = await browser.server.new_member("eve", role="owner")
    browser.cookies.clear()
    await browser.enter(member)
    async with browser.server.http.ws_connect(browser.server.url + "/", headers=browser.options()["headers"]) as socket:
        assert await socket.receive_str() == "welcome"
        await browser.server.call("POST", "/api/v2/users/logout", token=member)
        message = await socket.receive(timeout=5)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
    await until(gone.is_set)


async def test_tickets_and_passes_end(tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    async with ports(tmp_path, workspace, monkeypatch, clock, session_lifetime=30 * 86400.0) as browser:
        stranger = Browser(browser.server, browser.agent, PORT)
        target = await browser.ticket()
        clock.set_wall(clock.wall() + 60 * 10**9)
        assert (await stranger.fetch("GET", target))[0] == 403
        assert (await browser.fetch("GET", "/"))[0] in (200, 503)
        clock.set_wall(clock.wall() + 86400 * 10**9)
        assert (await browser.fetch("GET", "/"))[0] == 401


@given(st.text(alphabet="0123456789abcdef.-_", max_size=120) | st.text(max_size=40))
def test_no_text_is_a_pass(text: str) -> None:
    access = PortAccess(None, ManualClock(), bytes(32))  # type: ignore[arg-type] # nothing is looked up
    assert access.key_of(text, Origin(uuid4(), PORT, "http", "localhost:1")) is None
