"""Agents and clients meet at a real server, over WebSockets (tailnet.md §3, agent-api.md §3.2-3.4)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from agent.api import methods, tailnet
from agent.api.proto import tailnet_pb2 as pb
from agent.api.versions import ApiVersion
from agent.clock import SystemClock
from agent.protocol.drpc import ClientCall, ErrorCode, Invoked, MessageReceived, ServerTransport
from agent.protocol.yamux import DataReceived, Role, StreamOpened, YamuxSession
from agent.rpc import Duplex, RpcClient, UnsupportedError, WebSocketTransport
from tests.server.deployment import Deployment, NewAgent, deployment

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cli-coordinate.json").read_text())
RECORDED_AGENT = UUID("936f0a74-460e-44d7-a254-0789f5951835")
Request = pb.CoordinateRequest
Update = pb.CoordinateResponse.PeerUpdate
LEAVE = Request(disconnect=Request.Disconnect())
LIMIT = 20


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/x.db", tmp_path) as running:
        yield running


class Coordination:
    """One peer's stream."""

    def __init__(self, stream: Duplex) -> None:
        self._stream = stream

    async def send(self, request: Request) -> None:
        await self._stream.send(request.SerializeToString())

    async def receive(self) -> pb.CoordinateResponse | None:
        """The next response, or None at the end."""
        data = await asyncio.wait_for(self._stream.receive(), LIMIT)
        return None if data is None else pb.CoordinateResponse.FromString(data)

    async def update(self) -> Update:
        response = await self.receive()
        assert response is not None
        assert not response.error
        [update] = response.peer_updates
        return update

    async def error(self) -> str:
        """The last words of a stream that ends."""
        response = await self.receive()
        assert response is not None
        assert await self.receive() is None
        return response.error


@asynccontextmanager
async def coordination(client: RpcClient) -> AsyncIterator[Coordination]:
    async with await client.duplex(methods.COORDINATE.path) as stream:
        yield Coordination(stream)


@asynccontextmanager
async def client_of(server: Deployment, path: str, token: str | None = None) -> AsyncIterator[RpcClient]:
    """A person's client."""
    async with server.websocket(path, server.user if token is None else token) as socket:
        client = RpcClient(WebSocketTransport(socket), SystemClock())
        await client.start()
        try:
            yield client
        finally:
            await client.aclose()


def coordinate(agent: NewAgent, query: str = "version=2.0") -> str:
    return f"/api/v2/workspaceagents/{agent.id}/coordinate?{query}"


def me(peer: UUID, *addresses: bytes) -> Request:
    texts = [tailnet.address_text(packed) for packed in addresses or tailnet.agent_addresses(peer)]
    node = pb.Node(
        id=tailnet.node_id(peer),
        key=tailnet.write_key(peer.bytes * 2),
        disco=tailnet.write_disco(peer.bytes * 2),
        preferred_derp=999,
        derp_latency={"999-v4": 0.004, "999-v6": 0.002, "12-v4": 0.05, "junk": 1},
        addresses=texts,
        allowed_ips=texts,
    )
    return Request(update_self=Request.UpdateSelf(node=node))


def tunnel(agent: UUID) -> Request:
    return Request(add_tunnel=Request.Tunnel(id=agent.bytes))


async def resume_token(client: RpcClient) -> str:
    data = await client.unary(methods.REFRESH_RESUME_TOKEN.path, b"", timeout=LIMIT)
    answer = pb.RefreshResumeTokenResponse.FromString(data)
    assert answer.refresh_in.seconds == 12 * 3600
    assert answer.expires_at.seconds > 0
    return answer.token


async def refusal(server: Deployment, path: str, token: str | None = None) -> tuple[int, Any]:
    """Of an upgrade: status and body."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Coder-Session-Token": token or server.user}
    headers |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    async with server.http.get(server.url + path, headers=headers) as response:
        return response.status, await response.json() if response.status != 101 else None


CLIENT = uuid4()
CLIENT_ADDRESS = tailnet.address(tailnet.TAILSCALE_PREFIX, CLIENT)


async def test_a_client_meets_an_agent(server: Deployment) -> None:
    agent = await server.new_agent()
    async with AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(server.rpc(agent))
        of_agent = await stack.enter_async_context(coordination(rpc))
        await of_agent.send(me(agent.id))
        client = await stack.enter_async_context(client_of(server, coordinate(agent)))
        of_client = await stack.enter_async_context(coordination(client))
        await of_client.send(tunnel(agent.id))
        found = await of_client.update()
        assert (UUID(bytes=found.id), found.kind, found.node) == (
            agent.id,
            Update.NODE,
            me(agent.id).update_self.node,
        )
        await of_client.send(me(CLIENT, CLIENT_ADDRESS))
        heard = await of_agent.update()
        assert heard.kind == Update.NODE
        assert list(heard.node.addresses) == [tailnet.address_text(CLIENT_ADDRESS)]
        await of_agent.send(Request(ready_for_handshake=[Request.ReadyForHandshake(id=heard.id)]))
        assert (await of_client.update()).kind == Update.READY_FOR_HANDSHAKE
        await of_client.send(LEAVE)
        assert await of_client.receive() is None
        gone = await of_agent.update()
        assert (gone.id, gone.kind, gone.reason) == (heard.id, Update.DISCONNECTED, "graceful disconnect")


@pytest.mark.spec("tailnet", 17)
async def test_an_agent_that_vanishes_is_lost(server: Deployment) -> None:
    agent = await server.new_agent()
    async with client_of(server, coordinate(agent)) as client, coordination(client) as of_client:
        await of_client.send(tunnel(agent.id))
        async with server.rpc(agent) as rpc, coordination(rpc) as of_agent:
            await of_agent.send(me(agent.id))
            assert (await of_client.update()).kind == Update.NODE
        lost = await of_client.update()
        assert (UUID(bytes=lost.id), lost.kind, lost.reason) == (agent.id, Update.LOST, "lost")


@pytest.mark.spec("tailnet", 22)
async def test_refusals_end_the_stream_and_not_the_connection(server: Deployment) -> None:
    agent, other = await server.new_agent(), await server.new_agent("other")
    async with server.rpc(agent) as rpc:
        for request, text in (
            (tunnel(other.id), "authorization: agents cannot open tunnels"),
            (me(other.id), "authorization: Addresses: invalid node address, got "),
            (Request(update_self=Request.UpdateSelf()), "update self: node is missing"),
        ):
            async with coordination(rpc) as of_agent:
                await of_agent.send(request)
                assert (await of_agent.error()).startswith(text)
        async with await rpc.duplex(methods.COORDINATE.path) as stream:
            await stream.send(b"\xff")
            data = await asyncio.wait_for(stream.receive(), LIMIT)
            assert "no CoordinateRequest" in pb.CoordinateResponse.FromString(data or b"").error
    async with client_of(server, coordinate(agent)) as client:
        for request, text in (
            (tunnel(other.id), f"authorization: invalid agent id, expected {agent.id}, got {other.id}"),
            (Request(ready_for_handshake=[Request.ReadyForHandshake(id=agent.id.bytes)]),
             "authorization: clients may not send ready_for_handshake"),
        ):  # fmt: skip
            async with coordination(client) as of_client:
                await of_client.send(request)
                assert await of_client.error() == text


@pytest.mark.spec("tailnet", 21)
async def test_an_agent_that_connects_twice(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as first, coordination(first) as old:
        await old.send(me(agent.id))
        async with server.rpc(agent) as second, coordination(second) as new:
            assert await old.error() == "peer ID overwritten by new connection"
            await new.send(LEAVE)
            assert await new.receive() is None


@pytest.mark.spec("tailnet", 25)
@pytest.mark.parametrize("newest", [ApiVersion(2, 10)])
async def test_versions(server: Deployment, newest: ApiVersion) -> None:
    agent = await server.new_agent()
    texts = {
        "2.99": f"server is at version {newest}, behind requested minor version 2.99",
        "3.0": f"server is at version {newest}, behind requested major version 3.0",
        "1.0": "version 1.0 is no longer supported",
        "x": "invalid version string: x",
    }
    for path in (f"/api/v2/workspaceagents/{agent.id}/coordinate", "/api/v2/tailnet"):
        for version, text in texts.items():
            status, body = await refusal(server, f"{path}?version={version}")
            assert status == 400
            assert body["message"] == "Unknown or unsupported API version"
            assert body["validations"] == [{"field": "version", "detail": text}]
        for minor in range(newest.minor + 1):
            async with client_of(server, f"{path}?version=2.{minor}") as client:
                await client.ping(LIMIT)
    status, body = await refusal(server, f"/api/v2/workspaceagents/{agent.id}/coordinate")
    assert (status, body["validations"][0]["detail"]) == (400, texts["1.0"])
    async with client_of(server, "/api/v2/tailnet") as client:
        await client.ping(LIMIT)
    async with server.rpc(agent, "") as client:
        await client.ping(LIMIT)


async def test_only_who_may_see_an_agent_reaches_it(server: Deployment) -> None:
    agent, member = await server.new_agent(), await server.new_member("bob")
    own = await server.new_agent("own", token=member)
    for path in (coordinate(agent), f"/api/v2/workspaceagents/{agent.id}/connection"):
        status, body = await refusal(server, path, member)
        assert (status, body["message"]) == (
            404,
            "Agent doesn't exist with that id, or you do not have access to it.",
        )
    async with client_of(server, "/api/v2/tailnet?version=2.3", member) as client:
        async with coordination(client) as stream:
            await stream.send(tunnel(own.id))
            await stream.send(tunnel(agent.id))
            assert await stream.error() == "authorization: workspace agent not found or you do not have permission"
        async with await client.duplex(methods.WORKSPACE_UPDATES.path) as updates:
            asked = pb.WorkspaceUpdatesRequest(workspace_owner_id=uuid4().bytes)
            await updates.send(asked.SerializeToString())
            with pytest.raises(Exception, match="permission"):
                await asyncio.wait_for(updates.receive(), LIMIT)


@pytest.mark.spec("tailnet", 26)
async def test_a_resumed_client_is_the_same_peer(server: Deployment) -> None:
    agent, other = await server.new_agent(), await server.new_agent("other")
    async with server.rpc(agent) as rpc, coordination(rpc) as of_agent:
        await of_agent.send(me(agent.id))
        peers, token = [], ""
        for _ in range(2):
            path = coordinate(agent, f"version=2.0&resume_token={token}")
            async with client_of(server, path) as client, coordination(client) as stream:
                await stream.send(me(CLIENT, CLIENT_ADDRESS))
                await stream.send(tunnel(agent.id))
                heard = await of_agent.update()
                assert heard.kind == Update.NODE
                peers.append(heard.id)
                token = await resume_token(client)
            assert (await of_agent.update()).kind == Update.LOST
        assert peers[0] == peers[1]
    member = await server.new_member("bob", role="owner")
    for path, session in (
        (coordinate(agent, "version=2.0&resume_token=junk"), server.user),
        (coordinate(agent, f"version=2.0&resume_token={token}"), member),
        (coordinate(other, f"version=2.0&resume_token={token}"), server.user),
        (f"/api/v2/tailnet?resume_token={token}", server.user),
    ):
        status, body = await refusal(server, path, session)
        assert (status, body["message"]) == (401, "Invalid resume token")
        assert [one["field"] for one in body["validations"]] == ["resume_token"]


@pytest.mark.spec("tailnet", 27)
async def test_the_derp_map_is_streamed_and_never_ends(tmp_path: Path) -> None:
    def written(name: str) -> str:
        node = {"Name": "a", "RegionID": 900, "HostName": "derp.example"}
        return json.dumps({"Regions": {"900": {"RegionID": 900, "RegionName": name, "Nodes": [node]}}})

    file = tmp_path / "derp.json"
    file.write_text(written("first"))
    async with deployment(f"sqlite:///{tmp_path}/x.db", tmp_path, derp_map=file, force_websockets=True) as server:
        agent = await server.new_agent()
        shown = await server.call("GET", f"/api/v2/workspaceagents/{agent.id}/connection")
        assert shown == await server.call("GET", "/api/v2/workspaceagents/connection")
        assert shown["derp_map"]["Regions"]["900"]["RegionName"] == "first"
        assert (shown["derp_force_websockets"], shown["disable_direct_connections"]) == (True, False)
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(client_of(server, coordinate(agent))),
                await stack.enter_async_context(server.rpc(agent)),
            ]
            streams = [
                await stack.enter_async_context(aclosing(client.stream(methods.STREAM_DERP_MAPS.path, b"")))
                for client in clients
            ]
            socket = await stack.enter_async_context(server.websocket("/api/v2/derp-map", ""))

            async def names() -> list[str]:
                maps = [pb.DERPMap.FromString(await anext(stream)) for stream in streams]
                message = await socket.receive()
                assert message.type is aiohttp.WSMsgType.BINARY
                assert message.data.endswith(b"}}\n")
                return [
                    *(one.regions[900].region_name for one in maps),
                    json.loads(message.data)["Regions"]["900"]["RegionName"],
                ]

            assert await asyncio.wait_for(names(), LIMIT) == ["first"] * 3
            waiting = asyncio.create_task(names())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            file.write_text(written("second"))
            assert await asyncio.wait_for(waiting, LIMIT) == ["second"] * 3
            await socket.send_str("hello")
            closed = await socket.receive()
            assert (closed.data, closed.extra) == (1008, "unexpected data message")


@pytest.mark.spec("tailnet", 28)
async def test_workspace_updates(server: Deployment) -> None:
    agent = await server.new_agent()
    shown = await server.call("GET", "/api/v2/agents/dev")
    owner = pb.WorkspaceUpdatesRequest(workspace_owner_id=UUID(shown["owner_id"]).bytes)
    async with client_of(server, "/api/v2/tailnet?version=2.3") as client:
        path = methods.WORKSPACE_UPDATES.path
        async with aclosing(client.stream(path, owner.SerializeToString())) as updates:

            async def next_update() -> pb.WorkspaceUpdate:
                return pb.WorkspaceUpdate.FromString(await asyncio.wait_for(anext(updates), LIMIT))

            first = await next_update()
            [workspace], [found] = first.upserted_workspaces, first.upserted_agents
            assert (workspace.name, workspace.status) == ("dev", pb.Workspace.RUNNING)
            assert (found.id, found.workspace_id) == (agent.id.bytes, workspace.id)
            second = await server.new_agent("second")
            update = await next_update()
            assert [one.name for one in update.upserted_workspaces] == ["second"]
            assert [one.id for one in update.upserted_agents] == [second.id.bytes]
            await server.call("POST", "/api/v2/agents/second/builds", json={"transition": "stop"}, expect=201)
            update = await next_update()
            assert [one.status for one in update.upserted_workspaces] == [pb.Workspace.STOPPING]
            assert not update.upserted_agents
            update = await next_update()
            assert [one.status for one in update.upserted_workspaces] == [pb.Workspace.STOPPED]
            assert [one.id for one in update.deleted_agents] == [second.id.bytes]
            await server.call("DELETE", "/api/v2/agents/dev", expect=204)
            update = await next_update()
            assert [one.id for one in update.deleted_workspaces] == [workspace.id]
            assert [one.id for one in update.deleted_agents] == [agent.id.bytes]
    async with client_of(server, coordinate(second)) as client:
        with pytest.raises(UnsupportedError) as unsupported:
            await client.unary(path, owner.SerializeToString(), timeout=LIMIT)
        assert unsupported.value.code == ErrorCode.UNIMPLEMENTED


async def test_latencies_come_from_the_agents_node(server: Deployment) -> None:
    agent = await server.new_agent()
    async with server.rpc(agent) as rpc, coordination(rpc) as of_agent:
        assert "latency" not in await server.agent(agent)
        await of_agent.send(me(agent.id))
        async with asyncio.timeout(LIMIT):
            while "latency" not in (shown := await server.agent(agent)):
                await asyncio.sleep(0.01)
        assert shown["latency"] == {
            "Embedded Relay": {"preferred": True, "latency_ms": 2.0},
            "Unnamed 12": {"preferred": False, "latency_ms": 50.0},
        }


@pytest.mark.spec("tailnet", 23)
async def test_a_server_that_stops_says_so(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with deployment(f"sqlite:///{tmp_path}/x.db", tmp_path) as server:
            agent = await server.new_agent()
            session = await stack.enter_async_context(aiohttp.ClientSession())
            server.http, own = session, server.http
            rpc = await stack.enter_async_context(server.rpc(agent))
            of_agent = await stack.enter_async_context(coordination(rpc))
            await of_agent.send(me(agent.id))
            client = await stack.enter_async_context(client_of(server, coordinate(agent)))
            of_client = await stack.enter_async_context(coordination(client))
            await of_client.send(tunnel(agent.id))
            assert (await of_client.update()).kind == Update.NODE
            server.http = own
        lost = await of_client.update()
        assert (lost.kind, lost.reason) == (Update.LOST, "coordinator close")
        last = await of_client.receive()
        assert last is not None
        assert last.error == "coordinator closed"
        told = await of_agent.receive()
        assert told is not None
        assert told.error == "coordinator closed"


async def test_few_may_follow_the_derp_map_at_once(server: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.server.api.tailnet.MAX_FOLLOWERS", 1)
    async with server.websocket("/api/v2/derp-map", "") as socket:
        await socket.receive()
        assert (await refusal(server, "/api/v2/derp-map"))[0] == 503
    async with asyncio.timeout(LIMIT):
        while (await refusal(server, "/api/v2/derp-map"))[0] == 503:
            await asyncio.sleep(0.01)


async def test_telemetry_is_taken_and_dropped(server: Deployment) -> None:
    agent = await server.new_agent()
    async with client_of(server, coordinate(agent)) as client:
        assert await client.unary(methods.POST_TELEMETRY.path, b"anything", timeout=LIMIT) == b""
    async with server.rpc(agent) as rpc:
        with pytest.raises(UnsupportedError):
            await rpc.unary(methods.REFRESH_RESUME_TOKEN.path, b"", timeout=LIMIT)


class Conversation:
    """Both halves of a connection, decoded: what was called on which stream, and what was answered."""

    def __init__(self) -> None:
        self._client, self._server = YamuxSession(Role.CLIENT, 0), YamuxSession(Role.SERVER, 0)
        self._calls: dict[int, tuple[ServerTransport, ClientCall]] = {}
        self.paths: dict[int, str] = {}
        self.replies: dict[int, list[bytes]] = {}
        self.ended: set[int] = set()

    def by_client(self, data: bytes) -> None:
        for event in self._server.receive_data(data, 0):
            match event:
                case StreamOpened(stream):
                    assert self._client.open_stream(0) == stream
                    self._server.accept(stream)
                    self._calls[stream], self.replies[stream] = (ServerTransport(), ClientCall("")), []
                case DataReceived(stream, part):
                    self._server.consume(stream, len(part))
                    for one in self._calls[stream][0].receive(part):
                        if isinstance(one, Invoked):
                            self.paths[stream] = one.call.path

    def by_server(self, data: bytes) -> None:
        for event in self._client.receive_data(data, 0):
            match event:
                case DataReceived(stream, part):
                    self._client.consume(stream, len(part))
                    for one in self._calls[stream][1].receive(part):
                        if isinstance(one, MessageReceived):
                            self.replies[stream].append(one.data)
                        else:
                            self.ended.add(stream)

    def reached(self, other: Conversation) -> bool:
        """Whether the server has said here as much as it has there."""
        return self.ended >= other.ended and all(
            len(self.replies[stream]) >= len(there) for stream, there in other.replies.items()
        )


@pytest.mark.parametrize("flow", sorted(VECTORS))
async def test_a_recorded_client_is_served(server: Deployment, flow: str) -> None:
    """The client's half of a recording, byte for byte but for the agent's id, against a fake agent."""
    agent = await server.new_agent()
    recorded, ours = Conversation(), Conversation()
    heard: list[Update] = []

    async def answer(of_agent: Coordination) -> None:
        while (response := await of_agent.receive()) is not None:
            heard.extend(response.peer_updates)
            there = [update.id for update in response.peer_updates if update.kind == Update.NODE]
            if there:
                ready = [Request.ReadyForHandshake(id=peer) for peer in there]
                await of_agent.send(Request(ready_for_handshake=ready))

    async with server.rpc(agent) as rpc, coordination(rpc) as of_agent:
        await of_agent.send(me(agent.id))
        while "latency" not in await server.agent(agent):
            await asyncio.sleep(0.01)
        answering = asyncio.create_task(answer(of_agent))
        path = VECTORS[flow]["path"].replace(str(RECORDED_AGENT), str(agent.id))
        async with server.websocket(path, server.user) as socket, asyncio.timeout(LIMIT):
            for _, direction, kind, text in VECTORS[flow]["messages"]:
                assert kind in ("binary", "close")
                data = bytes.fromhex(text).replace(RECORDED_AGENT.bytes, agent.id.bytes)
                if direction == ">":
                    recorded.by_client(data)
                    ours.by_client(data)
                    await socket.send_bytes(data)
                elif kind == "binary":
                    recorded.by_server(data)
                    while not ours.reached(recorded):
                        ours.by_server((await socket.receive()).data)
            while len(heard) < 2:
                await asyncio.sleep(0.01)
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    assert [update.kind for update in heard] == [Update.NODE, Update.DISCONNECTED]
    assert ours.paths == recorded.paths
    replies = {ours.paths[stream]: found for stream, found in ours.replies.items()}
    responses = [pb.CoordinateResponse.FromString(data) for data in replies[methods.COORDINATE.path]]
    assert [[(one.kind, one.reason) for one in response.peer_updates] for response in responses] == [
        [(Update.NODE, "add tunnel")],
        [(Update.READY_FOR_HANDSHAKE, "")],
    ]
    assert [list(pb.DERPMap.FromString(one).regions) for one in replies[methods.STREAM_DERP_MAPS.path]] == [[999]]
    [token] = replies[methods.REFRESH_RESUME_TOKEN.path]
    assert pb.RefreshResumeTokenResponse.FromString(token).token
    assert replies[methods.POST_TELEMETRY.path] == [b""]
