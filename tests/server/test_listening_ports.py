"""What a server makes of what an agent says about its ports, also of nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server import agent_ports
from agent.server.agent_ports import AgentPorts, port_of
from agent.server.errors import ApiError
from agent.server.network import AgentUnreachableError
from agent.testing import ManualClock
from agent.testing.streams import MemoryStream, stream_pair
from tests.server.deployment import deployment


class Network:
    """An agent that says `answer` to every request; a text is why it cannot be reached."""

    def __init__(self, answer: bytes | str) -> None:
        self.answer = answer

    async def dial(self, agent: object, port: int, timeout: float) -> MemoryStream:
        assert port == 4
        if isinstance(self.answer, str):
            raise AgentUnreachableError(self.answer)
        near, far = stream_pair(capacity=1 << 24)
        await far.write(self.answer)
        far.shutdown_write()
        return near


async def ask(answer: bytes | str) -> Any:
    return await AgentPorts(cast(Any, Network(answer)), ManualClock()).ask(uuid4())


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def test_an_answer() -> None:
    found = await ask(http(b'{"ports":[{"process_name":"node","network":"tcp","port":8080}],"more":1}\n'))
    assert [(item.port, item.process_name) for item in found.ports] == [(8080, "node")]


@pytest.mark.parametrize(
    ("answer", "message", "detail"),
    [
        ("no answer within 30 s", "Internal error dialing workspace agent.", "no answer within 30 s"),
        (b"", "Internal error fetching listening ports.", "disconnected"),
        (b"\x00nonsense\r\n\r\n", "Internal error fetching listening ports.", ""),
        (http(b"[]"), "Internal error fetching listening ports.", "the agent's answer: "),
        (
            http(b'{"message":"Could not scan","detail":"tcp"}', "500 Oh"),
            "Internal error fetching listening ports.",
            "the agent answered 500: Could not scan tcp",
        ),
        (http(b"x", "302 Found"), "Internal error fetching listening ports.", "302: b'x'"),
        (http(bytes(agent_ports.MAX_BODY + 1)), "Internal error fetching listening ports.", "larger than"),
    ],
)
async def test_an_agent_that_does_not_answer_well(answer: bytes | str, message: str, detail: str) -> None:
    with pytest.raises(ApiError) as caught:
        await ask(answer)
    assert (caught.value.status, caught.value.body.message) == (500, message)
    assert detail in caught.value.body.detail


@given(st.text() | st.from_regex(r"http://[a-z]{1,5}(:\d{1,6})?/.*"))
def test_ports_of_any_app(url: str) -> None:
    assert 0 <= port_of(url) <= 65535


def test_ports_of_apps() -> None:
    assert [port_of(url) for url in ("http://localhost:13337/?folder=x", "https://[::1]:8443", "", "x")] == [
        13337,
        8443,
        0,
        0,
    ]


async def test_who_may_ask_and_when(tmp_path: Path) -> None:
    async with deployment(f"sqlite:///{tmp_path}/test.db", tmp_path) as server:
        created = await server.new_agent()
        path = f"/api/v2/workspaceagents/{created.id}/listening-ports"
        answer = await server.call("GET", path, expect=400)
        assert answer == {"message": 'Agent state is "connecting", it must be in the "connected" state.'}
        await server.call("GET", path, token=await server.new_member("Eve"), expect=404)
        await server.call("GET", path, token="", expect=401)
