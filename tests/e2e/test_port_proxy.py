"""Ports of a workspace in the browser: a real server, a real agent, and what listens beside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from yarl import URL

from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component

DEFINITION = json.dumps({"name": "dev", "apps": [{"slug": "hidden", "url": "http://localhost:18733"}]})
LARGE = 200 * 1024 * 1024
PIECE = bytes(range(256)) * 1024

pytestmark = pytest.mark.timeout(120)


class Place:
    """A deployment with one agent, and a browser."""

    def __init__(
        self, deployment: Deployment, created: CreatedAgent, agent: Component, http: aiohttp.ClientSession
    ) -> None:
        self.deployment, self.created, self.agent, self.http = deployment, created, agent, http

    async def link(self, port: int) -> str:
        answer = await self.deployment.request("POST", f"agents/{self.created.id}/ports/{port}/tickets")
        return str(answer["url"])

    async def enter(self, port: int) -> str:
        """The origin, after the ticket was used up."""
        link = await self.link(port)
        async with self.http.get(link, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
        return link.partition("/?")[0]


@asynccontextmanager
async def a_place(directory: Path) -> AsyncIterator[Place]:
    async with (
        Deployment(directory) as deployment,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), timeout=aiohttp.ClientTimeout(60)) as http,
    ):
        # The browser of somebody who is logged in, also under the name that the ports have.
        for host in (deployment.url, "http://localhost/"):
            http.cookie_jar.update_cookies({"coder_session_token": deployment.token}, URL(host))
        created = await deployment.create_agent(DEFINITION)
        agent = deployment.agent(created)
        await agent.start()
        await deployment.wait_for(created, 30, status=["connected"])
        yield Place(deployment, created, agent, http)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with a_place(tmp_path) as place:
        yield place


@asynccontextmanager
async def program(serve: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """Something that listens in the workspace."""
    server = RawTestServer(serve)
    await server.start_server()
    assert server.port is not None
    try:
        yield server.port
    finally:
        await server.close()


@asynccontextmanager
async def http_server(directory: Path, port: int = 0) -> AsyncIterator[int]:
    """`python -m http.server`, as people start it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "http.server", str(port), "--bind", "127.0.0.1",
        cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(rb"port (\d+)", await process.stdout.readline())
        assert found is not None
        yield int(found[1])
    finally:
        process.kill()
        await process.wait()


async def test_files_and_what_happens_around_them(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "index.html").write_text("<h1>Hello from the workspace</h1>")
    async with http_server(folder) as port:
        origin = await place.enter(port)
        assert origin.startswith("http://localhost:")
        assert origin != place.deployment.url
        async with place.http.get(f"{origin}/") as answer:
            assert "Hello from the workspace" in await answer.text()
            assert answer.headers["Server"].startswith("SimpleHTTP")
    async with place.http.get(f"{origin}/", headers={"Accept": "text/html"}) as answer:
        assert answer.status == 502
        assert f"Nothing listens on port {port}" in await answer.text()
    # The agent goes, and comes back as another process: the same page works again.
    await place.agent.kill()
    async with place.http.get(f"{origin}/") as answer:
        assert answer.status == 503
    await place.agent.start()
    async with http_server(folder, port), asyncio.timeout(30):
        while True:
            async with place.http.get(f"{origin}/") as answer:
                if answer.status == 200:
                    break
                assert answer.status == 503
            await asyncio.sleep(0.1)


async def test_nothing_of_ours_reaches_the_workspace(place: Place) -> None:
    seen: list[str] = []

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        seen.extend(f"{name!r} {value!r}" for name, value in request.raw_headers)
        seen.append(request.raw_path)
        response = web.Response(text="ok", headers={"Clear-Site-Data": '"*"'})
        for cookie in ("coder_session_token=evil; Path=/", "theirs=1; Domain=localhost", "workspace_port_1=evil"):
            response.headers.add("Set-Cookie", cookie)
        return response

    async with program(serve) as port:
        link = await place.link(port)
        async with place.http.get(link) as answer:
            assert answer.status == 200
            assert "Clear-Site-Data" not in answer.headers
            assert answer.headers.getall("Set-Cookie") == ["theirs=1"]
        async with place.http.get(f"{link.partition('/?')[0]}/api/v2/users/me") as answer:
            assert await answer.text() == "ok"
        # The address will be another port's some day.
        async with place.http.get(link.partition("?")[0], headers={"Service-Worker": "script"}) as answer:
            assert answer.status == 403
        ticket = link.partition("=")[2]
        everything = "\n".join(seen)
        assert place.deployment.token not in everything
        assert ticket not in everything
        assert "workspace_port" not in everything
        kept = {cookie.key for cookie in place.http.cookie_jar}
        assert "theirs" in kept
        # The link is good once, and nobody else's browser has the pass.
        async with aiohttp.ClientSession() as stranger:
            async with stranger.get(link, allow_redirects=False) as answer:
                assert answer.status == 403
            cookies = {"coder_session_token": place.deployment.token}
            async with stranger.get(link.partition("?")[0], cookies=cookies) as answer:
                assert answer.status == 401
        # Another name for the same address, as with DNS rebinding.
        origin = link.partition("/?")[0]
        async with place.http.get(f"{origin}/", headers={"Host": "evil.test"}) as answer:
            assert answer.status == 421
        async with place.http.post(f"{origin}/", headers={"Origin": place.deployment.url}) as answer:
            assert answer.status == 403
        # The other way round: a port's page cannot act on the control plane.
        url = f"{place.deployment.url}/api/v2/agents"
        async with place.http.post(url, data="x", headers={"Origin": origin}) as answer:
            assert answer.status == 403


async def test_websockets_and_events(place: Place) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/events":
            events = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await events.prepare(request)
            for number in range(3):
                await events.write(b"data: %d\n\n" % number)
                await asyncio.sleep(0.2)
            return events
        socket = web.WebSocketResponse(protocols=("echo",), max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            await (socket.send_bytes if message.type is aiohttp.WSMsgType.BINARY else socket.send_str)(message.data)
        return socket

    async with program(serve) as port:
        origin = await place.enter(port)
        async with place.http.get(f"{origin}/events") as answer:
            pieces = [piece async for piece in answer.content.iter_any()]
            assert len(pieces) == 3
        headers = {"Origin": origin}
        async with place.http.ws_connect(
            f"{origin}/ws", headers=headers, protocols=("echo",), max_msg_size=0, compress=15
        ) as socket:
            assert socket.protocol == "echo"
            for size in (0, 1, 125, 65536, 5_000_000):
                await socket.send_bytes(PIECE[:1] * size)
                assert len(await socket.receive_bytes(timeout=20)) == size
            await socket.send_str("text")
            assert await socket.receive_str(timeout=5) == "text"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await place.http.ws_connect(f"{origin}/ws", headers={"Origin": "http://evil.test"})


async def test_large_files_take_little_memory(place: Place) -> None:
    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "PUT":
            digest = hashlib.sha256()
            async for piece in request.content.iter_any():
                digest.update(piece)
            return web.Response(text=digest.hexdigest())
        response = web.StreamResponse(headers={"Content-Length": str(LARGE)})
        await response.prepare(request)
        for _ in range(LARGE // len(PIECE)):
            await response.write(PIECE)
        return response

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(LARGE // len(PIECE)):
            yield PIECE

    whole = hashlib.sha256()
    for _ in range(LARGE // len(PIECE)):
        whole.update(PIECE)
    async with program(serve) as port:
        origin = await place.enter(port)
        before = {name: await asyncio.to_thread(peak_rss, pid) for name, pid in pids(place).items()}
        digest = hashlib.sha256()
        async with place.http.get(f"{origin}/") as answer:
            assert answer.content_length == LARGE
            async for piece in answer.content.iter_any():
                digest.update(piece)
        assert digest.digest() == whole.digest()
        async with place.http.put(f"{origin}/", data=upload()) as answer:
            assert await answer.text() == whole.hexdigest()
        for name, pid in pids(place).items():
            grown = await asyncio.to_thread(peak_rss, pid) - before[name]
            assert grown < 64 * 1024 * 1024, f"{name} grew by {grown} bytes"


def peak_rss(pid: int) -> int:
    """Bytes of memory that a process had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def pids(place: Place) -> dict[str, int]:
    return {"server": place.deployment.server.pid, "agent": place.agent.pid}


@pytest.mark.spec("terminal-ssh-http", 42)
async def test_the_menu_shows_what_may_be_opened_as_it_changes(place: Place) -> None:
    async def serve(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async def listing(lines: aiohttp.StreamReader) -> Any:
        async with asyncio.timeout(10):
            while not (line := await lines.readline()).startswith(b"data: "):
                assert line
        return json.loads(line[6:])

    url = f"{place.deployment.url}/api/v2/agents/{place.created.id}/ports/watch"
    async with place.http.get(url) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        first = await listing(stream.content)
        assert first["trouble"] == ""
        async with program(serve) as port:
            loop = asyncio.get_running_loop()
            began = loop.time()
            while port not in [item["port"] for item in (await listing(stream.content))["ports"]]:
                pass
            assert loop.time() - began < 3  # a second, and what a busy machine adds
            hidden = [await listener(number) for number in (5432, 18733)]
            try:
                shown = {item["port"] for item in await ports(place)}
                assert port in shown
                assert not shown & {5432, 18733}
            finally:
                for one in hidden:
                    if one is not None:
                        one.close()
        while port in [item["port"] for item in (await listing(stream.content))["ports"]]:
            pass


async def ports(place: Place) -> Any:
    return (await place.deployment.request("GET", f"workspaceagents/{place.created.id}/listening-ports"))["ports"]


async def listener(port: int) -> asyncio.Server | None:
    """None where something listens there already, which is as good."""
    try:
        return await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    except OSError:
        return None


async def test_behind_a_proxy_it_is_said_what_to_do(tmp_path: Path) -> None:
    options = ["--access-url=https://workspaces.example.com"]
    async with Deployment(tmp_path, server_options=options) as deployment:
        created = await deployment.create_agent(DEFINITION)
        with pytest.raises(Exception, match=r"409.*--workspace-url"):
            await deployment.request("POST", f"agents/{created.id}/ports/8080/tickets")
