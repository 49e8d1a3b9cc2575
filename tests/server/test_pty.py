"""GET workspaceagents/{id}/pty in a server whose agent is the test: its stream to port 2 ends here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from agent.protocol.pty import Init, PtyDecoder
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.testing.streams import MemoryStream, stream_pair
from tests.server.deployment import Deployment, NewAgent, deployment


class Agent:
    """One that is connected; `unreachable` is why its network is not."""

    def __init__(self, server: Deployment, made: NewAgent) -> None:
        self.server, self.made = server, made
        self.path = f"/api/v2/workspaceagents/{made.id}/pty"
        self.streams: asyncio.Queue[MemoryStream] = asyncio.Queue()
        self.unreachable = ""
        self.dialled = 0

    async def dial(self, agent: UUID, port: int, *, allowed: int) -> MemoryStream:
        assert (agent, port) == (self.made.id, 2)
        self.dialled += 1
        if self.unreachable:
            raise AgentUnreachableError(self.unreachable)
        near, far = stream_pair()
        near.allow(allowed)
        self.streams.put_nowait(far)
        return near

    def open(self, query: str = "", *, headers: dict[str, str] | None = None, token: str | None = None) -> Any:
        token = self.server.user if token is None else token
        given = {"Coder-Session-Token": token} if token else {}
        url = f"{self.server.url}{self.path}?{query or f'reconnect={uuid4()}'}"
        return self.server.http.ws_connect(url, headers=given | (headers or {}))

    async def refused(self, query: str = "", **options: Any) -> aiohttp.WSServerHandshakeError:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with self.open(query, **options):
                pass
        return caught.value

    async def accepted(self) -> tuple[MemoryStream, Init]:
        stream = await self.streams.get()
        (init,) = PtyDecoder().receive(await stream.read())
        assert isinstance(init, Init)
        return stream, init


@pytest.fixture
async def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with an_agent(tmp_path, monkeypatch) as made:
        yield made


@asynccontextmanager
async def an_agent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    async with deployment(f"sqlite:///{directory}/test.db", directory) as server:
        made = Agent(server, await server.new_agent())
        monkeypatch.setattr(AgentNetwork, "dial", lambda _, *given, **named: made.dial(*given, **named))
        async with asyncio.timeout(20), server.rpc(made.made):
            while (await server.agent(made.made))["status"] != "connected":
                await asyncio.sleep(0)
            yield made


@pytest.mark.spec("terminal-ssh-http", 15)
@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("height=24", ["reconnect"]),
        ("reconnect=&height=24", ["reconnect"]),
        ("reconnect=1234", ["reconnect"]),
        ("reconnect={id}&height=abc", ["height"]),
        ("reconnect={id}&width=-1", ["width"]),
        ("reconnect={id}&width=1.5", ["width"]),
        ("reconnect={id}&width=%D9%A1", ["width"]),
        (f"reconnect={{id}}&width={1 << 64}", ["width"]),
        (f"reconnect={{id}}&width={'9' * 5000}", ["width"]),
        ("reconnect={id}&backend_type=tmux", ["backend_type"]),
        ("height=x&width=y&backend_type=z", ["reconnect", "height", "width", "backend_type"]),
    ],
)
async def test_mistakes_of_the_query_are_all_told_before_the_upgrade(
    tmp_path: Path, query: str, fields: list[str]
) -> None:
    async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path) as server:
        made = await server.new_agent()
        path = f"/api/v2/workspaceagents/{made.id}/pty?" + query.replace("{id}", str(uuid4()))
        answer = await server.call("GET", path, expect=400)
        assert answer["message"] == "Invalid query parameters."
        assert [each["field"] for each in answer["validations"]] == fields


async def test_the_init_is_what_the_query_says(agent: Agent) -> None:
    terminal = uuid4()
    query = f"reconnect={terminal}&height=65560&width=&command=echo+%C3%A9&backend_type=buffered&container=c&unknown=1"
    async with agent.open(query):
        _, init = await agent.accepted()
    assert init == Init(terminal, 24, 80, "echo é", "c", "", "buffered")


@pytest.mark.spec("terminal-ssh-http", 16)
async def test_every_kind_of_credential_authorises(agent: Agent) -> None:
    token = agent.server.user
    for headers in (
        {"Coder-Session-Token": token},
        {"Cookie": f"coder_session_token={token}"},
        {"Authorization": f"Bearer {token}"},
    ):
        async with agent.open(token="", headers=headers):
            await agent.accepted()
    for name in ("coder_session_token", "access_token"):
        async with agent.open(f"reconnect={uuid4()}&{name}={token}", token=""):
            await agent.accepted()


@pytest.mark.spec("terminal-ssh-http", 16)
async def test_nobody_else_gets_a_terminal(agent: Agent) -> None:
    assert (await agent.refused(token="")).status == 404
    assert (await agent.refused(token="nonsense")).status == 404
    assert (await agent.refused(token=await agent.server.new_member("Eve"))).status == 404
    assert (await agent.refused(headers={"Origin": "https://evil.example"})).status == 403
    assert agent.dialled == 0
    async with agent.open(headers={"Origin": agent.server.url}):
        await agent.accepted()
    async with agent.open(headers={"Origin": "http://access.example"}):
        await agent.accepted()


async def test_who_is_not_logged_in_is_told_so_as_by_the_go_server(agent: Agent) -> None:
    answer = await agent.server.call("GET", f"{agent.path}?reconnect={uuid4()}", token="", expect=404)
    assert answer["message"] == "Resource not found or you do not have access to this resource"


@pytest.mark.spec("terminal-ssh-http", 16)
async def test_an_agent_that_is_offline_is_a_page_and_no_upgrade(tmp_path: Path) -> None:
    async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path) as server:
        made = Agent(server, await server.new_agent())
        assert (await made.refused()).status == 404
        url = f"{server.url}{made.path}?reconnect={uuid4()}"
        async with server.http.get(url, headers={"Coder-Session-Token": server.user}) as response:
            assert response.status == 404
            assert response.content_type == "text/html"
            assert "Agent state is &quot;connecting&quot;, not &quot;connected&quot;" in await response.text()


async def test_a_request_that_is_no_upgrade(agent: Agent) -> None:
    url = f"{agent.server.url}{agent.path}?reconnect={uuid4()}"
    async with agent.server.http.get(url, headers={"Coder-Session-Token": agent.server.user}) as response:
        assert response.status == 426
    assert agent.dialled == 0


@pytest.mark.spec("terminal-ssh-http", 17)
async def test_requests_in_messages_of_any_cut(agent: Agent) -> None:
    async with agent.open() as socket:
        stream, _ = await agent.accepted()
        one, two = b'{"data":"one"}', b'{"data":"two","height":30,"width":100}'
        for message in (one[:5], one[5:], one + two):
            await socket.send_bytes(message)
        received = b""
        while len(received) < 2 * len(one) + len(two):
            received += await stream.read()
        assert received == one + one + two
        await stream.write(b"\x1b[1mout\xff")
        assert (await socket.receive()).data == b"\x1b[1mout\xff"


@pytest.mark.spec("terminal-ssh-http", 16)
async def test_a_text_message_of_a_plain_client(agent: Agent) -> None:
    async with agent.open() as socket:
        stream, _ = await agent.accepted()
        await socket.send_str("{}")
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1003
        assert await stream.read() == b"", "the terminal is left"


async def test_acknowledgements_are_text(agent: Agent) -> None:
    async with agent.open(f"reconnect={uuid4()}&acknowledge=1") as socket:
        stream, _ = await agent.accepted()
        await socket.send_str('{"ping": 1.5}')
        assert json.loads((await socket.receive()).data) == {"pong": 1.5}
        await socket.send_bytes(b"x")
        assert await stream.read() == b"x"
        assert json.loads((await socket.receive()).data) == {"taken": 1}


async def test_how_it_ends(agent: Agent) -> None:
    async with agent.open() as socket:
        stream, _ = await agent.accepted()
        stream.close()
        message = await socket.receive()
        assert (socket.close_code, message.extra) == (1000, "")
    async with agent.open() as socket:
        stream, _ = await agent.accepted()
        stream.abort()
        message = await socket.receive()
        assert (socket.close_code, message.extra) == (1011, "dial: the peer reset the connection")
    agent.unreachable = "dial workspace agent: " + "ä" * 200
    async with agent.open() as socket:
        message = await socket.receive()
        assert socket.close_code == 1011
        assert message.extra.startswith("dial workspace agent: ä")
        assert 121 <= len(message.extra.encode()) <= 123
    agent.unreachable = ""
    async with agent.open() as socket:
        stream, _ = await agent.accepted()
        await socket.send_bytes(b"exit\r")
    assert await stream.read() + await stream.read() == b"exit\r"


async def test_a_server_that_stops_says_so_to_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiohttp.ClientSession() as http:
        async with an_agent(tmp_path, monkeypatch) as agent:
            headers = {"Coder-Session-Token": agent.server.user}
            socket = await http.ws_connect(f"{agent.server.url}{agent.path}?reconnect={uuid4()}", headers=headers)
            await agent.accepted()
            reading = asyncio.create_task(socket.receive())
        assert (await reading).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1001
        await socket.close()
