"""A recorded session of a Go agent and a Go server: each half drives our other half."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from agent.api import methods
from agent.api.methods import RpcMethod
from agent.api.proto import agent_pb2 as pb
from agent.protocol.drpc import ClientCall, Invoked, MessageReceived, ServerTransport
from agent.protocol.yamux import DataReceived, Event, Role, SessionFailed, StreamFinished, StreamOpened, YamuxSession
from agent.rpc import Handler, RpcClient, RpcServer, ServerStream, Streaming, Unary
from agent.testing import ManualClock, memory_pair, settle

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "rpc-session.json").read_text())
METHODS: dict[str, RpcMethod[Message, Message]] = {
    method.path: method for method in vars(methods).values() if isinstance(method, RpcMethod)
}
TAILNET = "/coder.tailnet.v2.Tailnet/"


@dataclass
class Call:
    """One call as it was recorded; its stream carries nothing else."""

    path: str = ""
    requests: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    @property
    def streaming(self) -> bool:
        return self.path.startswith(TAILNET)


def wire() -> Iterator[tuple[str, bytes]]:
    """Direction and bytes of every message but the last, which is the close."""
    messages = VECTOR["messages"]
    assert len(messages) == 661
    assert messages[-1][1:] == ["<", "close", "03e8"]
    for _, direction, kind, data in messages[:-1]:
        assert kind == "binary"
        yield direction, bytes.fromhex(data)


def recorded() -> dict[int, Call]:
    """The calls by stream id, in the order in which the agent opened them."""
    agent, server = YamuxSession(Role.CLIENT, 0), YamuxSession(Role.SERVER, 0)
    calls: dict[int, Call] = {}
    decoders: dict[int, tuple[ServerTransport, ClientCall]] = {}

    def of_agent(event: Event) -> None:
        match event:
            case StreamOpened(stream):
                assert agent.open_stream(0) == stream
                server.accept(stream)
                calls[stream], decoders[stream] = Call(), (ServerTransport(), ClientCall(""))
            case DataReceived(stream, data):
                server.consume(stream, len(data))
                for part in decoders[stream][0].receive(data):
                    if isinstance(part, Invoked):
                        calls[stream].path = part.call.path
                    elif isinstance(part, MessageReceived):
                        calls[stream].requests.append(part.data)
            case StreamFinished(stream):
                server.close(stream, 0)
            case SessionFailed(error):
                raise error

    def of_server(event: Event) -> None:
        match event:
            case DataReceived(stream, data):
                agent.consume(stream, len(data))
                for part in decoders[stream][1].receive(data):
                    if isinstance(part, MessageReceived):
                        calls[stream].replies.append(part.data)
            case StreamFinished(stream):
                agent.close(stream, 0)
            case SessionFailed(error):
                raise error

    for direction, data in wire():
        session, handle = (server, of_agent) if direction == ">" else (agent, of_server)
        for event in session.receive_data(data, 0):
            handle(event)
    return calls


def test_every_message_of_the_recording_is_understood() -> None:
    calls = recorded()
    assert list(calls) == list(range(1, 2 * len(calls), 2))
    for call in calls.values():
        if not call.streaming:
            method = METHODS[call.path]
            (request,), (reply,) = call.requests, call.replies
            for message in (method.request.FromString(request), method.response.FromString(reply)):
                assert len(UnknownFieldSet(message)) == 0
    manifest = pb.Manifest.FromString(calls[1].replies[0])
    assert manifest.agent_name
    states = [
        pb.Lifecycle.State.Name(pb.UpdateLifecycleRequest.FromString(call.requests[0]).lifecycle.state)
        for call in calls.values()
        if call.path == methods.UPDATE_LIFECYCLE.path
    ]
    assert states == ["STARTING", "READY", "SHUTTING_DOWN", "OFF"]


@pytest.mark.spec("agent-api", 24)
async def test_the_agents_half_drives_our_server(clock: ManualClock) -> None:
    calls = recorded()
    served: list[tuple[str, bytes]] = []
    cancelled: list[str] = []

    async def unary(path: str, request: bytes) -> bytes:
        served.append((path, request))
        turn = sum(other == path for other, _ in served) - 1
        return [call.replies[0] for call in calls.values() if call.path == path][turn]

    async def stream(call: ServerStream) -> None:
        try:
            while (request := await call.receive()) is not None:
                served.append((call.path, request))
            await asyncio.Event().wait()
        finally:
            cancelled.append(call.path)

    handlers: dict[str, Handler] = {
        call.path: Streaming(stream) if call.streaming else Unary(partial(unary, call.path)) for call in calls.values()
    }
    agent, ours = memory_pair()
    server = RpcServer(ours, handlers, clock)
    serving = asyncio.create_task(server.serve())
    for direction, data in wire():
        if direction == ">":
            await agent.send([data])
            await settle(5)
    assert [request for request in served if request[0] == methods.BATCH_CREATE_LOGS.path] == [
        (call.path, call.requests[0]) for call in calls.values() if call.path == methods.BATCH_CREATE_LOGS.path
    ]
    assert sorted(served) == sorted((call.path, request) for call in calls.values() for request in call.requests)
    assert sorted(cancelled) == [TAILNET + "Coordinate", TAILNET + "StreamDERPMaps"]

    # What we answered, read by the agent's end of the protocol.
    reader = YamuxSession(Role.CLIENT, 0)
    answers = {reader.open_stream(0): ClientCall("") for _ in calls}
    replies: dict[int, list[bytes]] = {stream: [] for stream in calls}
    for event in reader.receive_data(bytes(ours.sent), 0):
        assert not isinstance(event, SessionFailed)
        if isinstance(event, DataReceived):
            for part in answers[event.stream_id].receive(event.data):
                if isinstance(part, MessageReceived):
                    replies[event.stream_id].append(part.data)
    assert replies == {stream: [] if call.streaming else call.replies for stream, call in calls.items()}
    await agent.aclose()
    assert await serving is None


async def test_the_servers_half_drives_our_client(clock: ManualClock) -> None:
    calls = recorded()
    ours, peer = memory_pair()
    client = RpcClient(ours, clock)
    await client.start()
    results: dict[int, asyncio.Task[list[bytes]]] = {}

    async def make(call: Call) -> list[bytes]:
        if not call.streaming:
            return [await client.unary(call.path, call.requests[0])]
        async with await client.duplex(call.path) as duplex:
            for request in call.requests:
                await duplex.send(request)
            return [await duplex.receive() or b"" for _ in call.replies]

    opening = YamuxSession(Role.SERVER, 0)
    for direction, data in wire():
        if direction == "<":
            await peer.send([data])
        else:
            for event in opening.receive_data(data, 0):
                match event:
                    case StreamOpened(stream):
                        opening.accept(stream)
                        results[stream] = asyncio.create_task(make(calls[stream]))
                    case DataReceived(stream, part):
                        opening.consume(stream, len(part))
                    case StreamFinished(stream):
                        opening.close(stream, 0)
        await settle(5)
    assert {stream: await result for stream, result in results.items()} == {
        stream: call.replies for stream, call in calls.items()
    }
    assert bytes.fromhex("000200020000000000000002") in ours.sent, "the server's pings were answered"
    await peer.aclose()
    assert await client.wait_closed() is None
    await client.aclose()
