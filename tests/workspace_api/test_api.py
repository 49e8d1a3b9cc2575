"""What holds for all routes, and the small ones (terminal-ssh-http.md §4)."""

from __future__ import annotations

import asyncio
import json
import logging
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.manifest import from_proto
from agent.api.proto import agent_pb2 as pb
from agent.protocol.tcp import TcpError
from agent.testing import ManualClock, settle
from agent.testing.streams import stream_pair
from agent.workspace_api import Metric, service
from agent.workspace_api.answers import ApiError, Query, object_from, to_json
from agent.workspace_api.interfaces import Interface, report
from tests.workspace_api.conftest import Client, Port, until

JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"


@pytest.mark.spec("terminal-ssh-http", 40)
async def test_greeting_and_what_is_not_there(client: Client) -> None:
    assert await client.get("/") == (200, JSON, '{"message":"Hello from the agent!"}\n')
    for path in ("/x", "/api/v0", "/api/v0/processes/list", "/api/v0/git/watch", "/api/v0/context-config", "/debug"):
        assert await client.get(path) == (404, TEXT, "404 page not found\n")


@pytest.mark.parametrize("path", ["/", "/api/v0/listening-ports", "/debug/logs"])
async def test_a_wrong_method(client: Client, path: str) -> None:
    status, _, body = await client.ask("POST", path)
    assert (status, body) == (405, "")


async def test_a_defect_is_told_without_its_text(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.shown.ports = "defect"
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/api/v0/listening-ports")
    assert answer == (500, JSON, '{"message":"An internal server error occurred."}\n')
    assert "a defect" in caplog.text


async def test_listening_ports(client: Client) -> None:
    assert await client.get("/api/v0/listening-ports") == (200, JSON, '{"ports":[]}\n')
    client.shown.ports = (Port(8080, "node"), Port(9000, ""))
    _, _, body = await client.get("/api/v0/listening-ports")
    assert body == (
        '{"ports":[{"process_name":"node","network":"tcp","port":8080},'
        '{"process_name":"","network":"tcp","port":9000}]}\n'
    )
    client.shown.ports = "/proc/net/tcp: Permission denied"
    status, _, body = await client.get("/api/v0/listening-ports")
    assert status == 500
    assert json.loads(body) == {
        "message": "Could not scan for listening ports.",
        "detail": "scan listening ports: /proc/net/tcp: Permission denied",
    }


async def test_ports_as_they_change(client: Client, clock: ManualClock) -> None:
    async with client.session.get("http://agent:4/api/v0/listening-ports/watch") as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
        assert json.loads(await answer.content.readline()) == {"ports": []}
        client.shown.ports = (Port(3000, "node"),)
        client.shown.changed.set()
        assert json.loads(await answer.content.readline())["ports"][0]["port"] == 3000
        for _ in range(5):  # far longer than a request may take otherwise
            await clock.advance(10)
            assert await answer.content.readline() == b"\n"
        client.shown.ports = ()
        client.shown.changed.set()
        await clock.advance(10)  # both at once: nothing is lost
        lines = [await answer.content.readline()]
        if lines[0] == b"\n":
            lines.append(await answer.content.readline())
        assert json.loads(lines[-1]) == {"ports": []}
        client.shown.ports = "gone"
        client.shown.changed.set()
        assert not (await answer.content.read()).strip()
    client.shown.ports = "/proc/net/tcp: Permission denied"
    status, _, body = await client.get("/api/v0/listening-ports/watch")
    assert (status, json.loads(body)["message"]) == (500, "Could not scan for listening ports.")


async def test_a_watcher_that_goes_away_leaves_nothing(client: Client) -> None:
    for turns in range(0, 60, 2):
        stream = client.dial()
        await stream.write(b"GET /api/v0/listening-ports/watch HTTP/1.1\r\nHost: agent\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.abort()
        await until(lambda: not client.serving)
    await settle()
    assert not client.shown.changed._waiters


@pytest.mark.spec("terminal-ssh-http", 45)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH"])
async def test_containers_are_off(client: Client, method: str) -> None:
    status, kind, body = await client.ask(method, "/api/v0/containers")
    assert (status, kind) == (403, JSON)
    assert body == (
        '{"message":"Dev Container feature not enabled.","detail":"To enable this feature, set '
        'CODER_AGENT_DEVCONTAINERS_ENABLE=true in your template."}\n'
    )
    assert (await client.get("/api/v0/containers/watch"))[0] == 404
    parent = UUID(int=7).bytes
    client.shown.manifest, _ = from_proto(pb.Manifest(agent_id=parent, workspace_id=parent, parent_id=parent))
    _, _, body = await client.ask(method, "/api/v0/containers")
    assert json.loads(body)["message"] == "Dev Container feature not supported."


async def test_no_desktop(client: Client) -> None:
    assert json.loads((await client.get("/api/v0/desktop/vnc"))[2])["message"] == "Failed to start desktop session."


# ---- netcheck


async def test_netcheck(client: Client) -> None:
    client.shown.net_info = {"PreferredDERP": 1, "WorkingUDP": True}
    status, _, body = await client.get("/api/v0/netcheck")
    value = json.loads(body)
    assert status == 200
    assert list(value) == ["severity", "warnings", "dismissed", "net_info", "interfaces"]
    assert (value["severity"], value["warnings"], value["dismissed"]) == ("ok", None, False)
    assert value["net_info"] == {"PreferredDERP": 1, "WorkingUDP": True}
    assert list(value["interfaces"]) == ["severity", "warnings", "dismissed", "interfaces"]
    for item in value["interfaces"]["interfaces"] or []:
        assert item["mtu"] > 0
        assert all("/" in address for address in item["addresses"])


@pytest.mark.spec("terminal-ssh-http", 43)
def test_interfaces() -> None:
    interfaces = [
        Interface("lo", 65536, ["127.0.0.1/8", "::1/128"]),
        Interface("eth0", 1500, ["fe80::1/64", "10.0.0.2/24"]),
        Interface("wg0", 1280, ["10.1.0.2/32"]),
        Interface("veth", 1000, ["fe80::2/64"]),
        Interface("none", 1000, []),
    ]
    shown = report(interfaces)
    assert [item["name"] for item in shown["interfaces"]] == ["lo", "eth0", "wg0"]
    assert shown["interfaces"][1]["addresses"] == ["fe80::1/64", "10.0.0.2/24"]
    assert shown["severity"] == "warning"
    (warning,) = shown["warnings"]
    assert warning["code"] == "EIF01"
    assert all(word in warning["message"] for word in ("wg0", "1280", "1378"))
    assert report([Interface("veth", 1000, ["fe80::2/64"])]) == {
        "severity": "ok",
        "warnings": None,
        "dismissed": False,
        "interfaces": None,
    }


# ---- time and numbers


@pytest.mark.spec("terminal-ssh-http", 47)
async def test_a_request_has_twenty_seconds(client: Client, clock: ManualClock) -> None:
    client.shown.hold = asyncio.Event()
    stream = client.dial()
    await stream.write(b"GET /api/v0/listening-ports HTTP/1.1\r\nHost: agent\r\n\r\n")
    await until(lambda: client.shown.hold is not None and bool(client.shown.hold._waiters))
    await clock.advance(19.9)
    assert not stream.arrived
    await clock.advance(0.2)
    with pytest.raises(TcpError, match="reset"):
        await stream.read()
    await until(lambda: not client.serving)


@pytest.mark.spec("terminal-ssh-http", 47)
async def test_an_upload_has_twenty_seconds(client: Client, clock: ManualClock) -> None:
    target = client.home / "file"
    stream = client.dial()
    head = f"POST /api/v0/write-file?path={target} HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000\r\n\r\n"
    await stream.write(head.encode() + b"some")
    await until(lambda: any(client.home.iterdir()))
    await clock.advance(20)
    with pytest.raises(TcpError, match="reset"):
        await stream.read()
    await until(lambda: not client.serving)
    await until(lambda: not any(client.home.iterdir()))  # no half file, no temporary one


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: agent\r\nX: "])
async def test_who_says_nothing_is_let_go(client: Client, clock: ManualClock, sent: bytes) -> None:
    stream = client.dial()
    await stream.write(sent)
    await until(lambda: not stream.peer_stream.arrived and clock.sleepers > 0)
    await clock.advance(20)
    assert await stream.read() == b""
    await until(lambda: not client.serving)


@pytest.mark.spec("terminal-ssh-http", 47)
async def test_an_answer_that_nobody_takes(client: Client, clock: ManualClock) -> None:
    client.shown.ports = [Port(number, "x" * 15) for number in range(20_000)]
    stream = client.dial(capacity=100)
    await stream.write(b"GET /api/v0/listening-ports HTTP/1.1\r\nHost: agent\r\n\r\n")
    await until(lambda: len(stream.arrived) == 100)
    await clock.advance(20)
    await until(lambda: not client.serving)
    assert stream.peer_stream.closed


async def test_a_connection_that_is_used_lives_on(client: Client, clock: ManualClock) -> None:
    stream = client.dial()
    for _ in range(4):
        await stream.write(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n")
        await until(lambda: bool(stream.arrived))
        assert (await stream.read()).startswith(b"HTTP/1.1 200")
        await clock.advance(15)


async def test_connections_are_bounded(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "MAX_CONNECTIONS", 2)
    held = [client.dial() for _ in range(2)]
    await until(lambda: client.api._connections == 2)
    refused = client.dial()
    with pytest.raises(TcpError, match="reset"):
        await refused.read()
    assert "one more was refused" in caplog.text
    held[0].close()
    await until(lambda: client.api._connections == 1)
    assert (await client.get("/"))[0] == 200


async def test_cancelled_service_resets_the_connection(client: Client) -> None:
    stream = client.dial()
    await stream.write(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n")
    await until(lambda: bool(stream.arrived))
    for task in client.serving:
        task.cancel()
    await until(lambda: not client.serving)
    assert stream.peer_stream.closed


async def test_cancelled_at_every_await(client: Client) -> None:
    """Whenever the node ends: nothing is left behind, and the next connection is served."""
    for turns in range(60):
        near, far = stream_pair()
        await near.write(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n")
        task = asyncio.create_task(client.api.serve(far))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert client.api._connections == 0
    assert (await client.get("/"))[0] == 200


# ---- the pieces


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_json_is_safe_in_html_and_means_the_same(value: object) -> None:
    text = to_json(value)
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    assert not set(b"<>&") & set(text)
    assert "\u2028" not in text.decode()
    assert json.loads(text) == value


def test_json_of_a_name_that_is_no_text() -> None:
    assert to_json({"name": "a\udcffb"}) == b'{"name":"a\xef\xbf\xbdb"}\n'


@given(st.binary())
def test_any_body(body: bytes) -> None:
    try:
        value = object_from(body)
    except ApiError as refused:
        value = refused.body()
        assert value["message"] == "Request body must be valid JSON."
    assert isinstance(value, dict)


@given(st.dictionaries(st.sampled_from(["path", "offset", "other"]), st.text()))
def test_any_query(given: dict[str, str]) -> None:
    query = Query(given)
    path, offset = query.text("path", required=True), query.count("offset")
    fields = set()
    try:
        query.check()
    except ApiError as refused:
        fields = {item.field for item in refused.validations}
    assert ("path" in fields) == (not path)
    assert ("other" in fields) == ("other" in given)
    assert "offset" in fields or not given.get("offset") or int(given["offset"]) == offset


async def test_metrics(client: Client) -> None:
    client.shown.metrics = [
        Metric("received_bytes_total", "counter", [({}, 12.0)]),
        Metric("peers", "gauge", [({"type": "p2p"}, 0.5), ({"type": 'a"\\\n'}, 2)]),
    ]
    status, kind, body = await client.get("/debug/prometheus")
    assert (status, kind) == (200, "text/plain")
    assert body == (
        "# TYPE received_bytes_total counter\nreceived_bytes_total 12\n"
        '# TYPE peers gauge\npeers{type="p2p"} 0.5\npeers{type="a\\"\\\\\\n"} 2\n'
    )
