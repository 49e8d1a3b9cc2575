"""Client and server joined in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agent.api.methods import GET_MANIFEST, REPORT_CONNECTION, SCRIPT_COMPLETED
from agent.api.proto import agent_pb2 as pb
from agent.api.versions import ApiVersion
from agent.rpc import (
    ConnectionLostError,
    Handler,
    RpcAgentApi,
    RpcClient,
    RpcError,
    RpcServer,
    ServerStream,
    StreamBrokenError,
    Streaming,
    Unary,
    UnsupportedError,
)
from agent.testing import ManualClock, MemoryTransport, memory_pair, settle

Chunker = Callable[[bytes], list[bytes]]


@asynccontextmanager
async def joined(
    handlers: dict[str, Handler], clock: ManualClock, chunker: Chunker | None = None
) -> AsyncIterator[tuple[RpcClient, RpcServer, MemoryTransport, MemoryTransport]]:
    left, right = memory_pair(chunker)
    client, server = RpcClient(left, clock), RpcServer(right, handlers, clock)
    serving = asyncio.create_task(server.serve())
    await client.start()
    try:
        yield client, server, left, right
    finally:
        await client.aclose()
        await asyncio.wait_for(serving, 10)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("yamux", "rpc "))]


async def echo(request: bytes) -> bytes:
    return request


async def test_unary_call(clock: ManualClock) -> None:
    async with joined({"/echo": Unary(echo)}, clock) as (client, *_):
        assert await client.unary("/echo", b"hello") == b"hello"
        assert await client.unary("/echo", b"") == b""


async def test_any_chunking_of_the_wire(clock: ManualClock) -> None:
    async with joined({"/echo": Unary(echo)}, clock, lambda data: [bytes((b,)) for b in data]) as (client, *_):
        assert await client.unary("/echo", b"x" * 3000) == b"x" * 3000


@pytest.mark.spec("agent-api", 18)
async def test_a_script_of_512000_bytes_in_the_manifest(clock: ManualClock) -> None:
    manifest = pb.Manifest(scripts=[pb.WorkspaceAgentScript(script="x" * 512_000)])

    async def handler(_: bytes) -> bytes:
        return manifest.SerializeToString()

    async with joined({GET_MANIFEST.path: Unary(handler)}, clock) as (client, _, left, _right):
        api = RpcAgentApi(client, ApiVersion(2, 0))
        assert await api.call(GET_MANIFEST, pb.GetManifestRequest()) == manifest
        # WindowUpdate without flags: the reader gave credit back.
        assert bytes.fromhex("000100000000000100") in bytes(left.sent)


@pytest.mark.spec("agent-api", 19)
async def test_300_concurrent_calls(clock: ManualClock) -> None:
    gate = asyncio.Event()

    async def slow(request: bytes) -> bytes:
        await gate.wait()
        return request

    async with joined({"/slow": Unary(slow)}, clock) as (client, *_):
        calls = [asyncio.create_task(client.unary("/slow", str(n).encode())) for n in range(300)]
        await settle()
        gate.set()
        assert await asyncio.gather(*calls) == [str(n).encode() for n in range(300)]


@pytest.mark.spec("agent-api", 22)
async def test_unknown_rpc_and_oversized_packet_fail_one_call(clock: ManualClock) -> None:
    async with joined({"/echo": Unary(echo)}, clock) as (client, *_):
        with pytest.raises(UnsupportedError) as caught:
            await client.unary("/coder.agent.v2.Agent/Nope", b"")
        assert caught.value.text == 'protocol error: unknown rpc: "/coder.agent.v2.Agent/Nope"'
        assert await client.unary("/echo", b"x" * 4_194_304) == b"x" * 4_194_304
        with pytest.raises(StreamBrokenError, match="4194305"):
            await client.unary("/echo", b"x" * 4_194_305)
        async with await client.duplex("/echo") as call:
            with pytest.raises(StreamBrokenError, match="4194305"):
                await call.send(b"x" * 4_194_305)
        assert await client.unary("/echo", b"still there") == b"still there"


async def test_handler_errors(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(_: bytes) -> bytes:
        raise RpcError("outer: inner: cause", 7)

    async def broken(_: bytes) -> bytes:
        raise ValueError("a defect")

    async with joined({"/refuse": Unary(refuse), "/broken": Unary(broken)}, clock) as (client, *_):
        with pytest.raises(RpcError, match="outer: inner: cause") as caught:
            await client.unary("/refuse", b"")
        assert caught.value.code == 7
        with pytest.raises(RpcError, match=r"^internal error$"):
            await client.unary("/broken", b"")
    assert "a defect" in caplog.text


@pytest.mark.spec("agent-api", 23)
async def test_cancelling_a_call_ends_its_handler(clock: ManualClock) -> None:
    ended = asyncio.Event()

    async def hang(_: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async with joined({"/hang": Unary(hang), "/echo": Unary(echo)}, clock) as (client, *_):
        call = asyncio.create_task(client.unary("/hang", b""))
        await settle()
        assert not ended.is_set()
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        assert await client.unary("/echo", b"on") == b"on"


async def test_a_call_without_an_answer_times_out(clock: ManualClock) -> None:
    async def hang(_: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with joined({"/hang": Unary(hang)}, clock) as (client, *_):
        call = asyncio.create_task(client.unary("/hang", b"", timeout=3))
        await settle()
        await clock.advance(3)
        with pytest.raises(ConnectionLostError, match="within 3 s"):
            await call


async def test_streams_in_both_directions(clock: ManualClock) -> None:
    async def count(stream: ServerStream) -> None:
        request = await stream.receive()
        assert request is not None
        for n in range(int(request)):
            await stream.send(b"%d" % n)

    async def upper(stream: ServerStream) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(message.upper())

    async with joined({"/count": Streaming(count), "/upper": Streaming(upper)}, clock) as (client, *_):
        assert [message async for message in client.stream("/count", b"1000")] == [b"%d" % n for n in range(1000)]
        async with await client.duplex("/upper") as call:
            await call.send(b"a")
            assert await call.receive() == b"A"
            await call.send(b"b")
            assert await call.receive() == b"B"
            await call.close_send()
            assert await call.receive() is None


@pytest.mark.spec("agent-api", 20)
async def test_a_stream_that_is_not_read_blocks_no_other(clock: ManualClock) -> None:
    async def flood(stream: ServerStream) -> None:
        while True:
            await stream.send(b"x" * 60_000)

    async with joined({"/flood": Streaming(flood), "/echo": Unary(echo)}, clock) as (client, _, _left, right):
        flooding = client.stream("/flood", b"")
        assert await anext(flooding)
        await settle()
        for _ in range(20):
            assert await client.unary("/echo", b"y" * 100_000) == b"y" * 100_000
        assert len(right.sent) < 20 * 110_000 + 2 * 262_144 + 200_000
        await flooding.aclose()


async def test_version_gate_sends_nothing(clock: ManualClock) -> None:
    async with joined({}, clock) as (client, _, left, _right):
        api = RpcAgentApi(client, ApiVersion(2, 2))
        await settle()
        before = len(left.sent)
        with pytest.raises(UnsupportedError, match="ScriptCompleted"):
            await api.call(SCRIPT_COMPLETED, pb.WorkspaceAgentScriptCompletedRequest())
        with pytest.raises(UnsupportedError, match="ReportConnection"):
            await api.call(REPORT_CONNECTION, pb.ReportConnectionRequest())
        assert len(left.sent) == before


@pytest.mark.spec("agent-api", 21)
async def test_a_silent_peer_is_dropped_within_40_seconds(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    waiting = asyncio.create_task(client.wait_closed())
    for _ in range(39):
        await clock.advance(1)
    assert not waiting.done()
    await clock.advance(1.5)
    assert "ping" in str(await waiting)
    await client.aclose()
    assert right.sent == b""


@pytest.mark.spec("agent-api", 21)
async def test_a_stream_open_without_ack_ends_the_connection(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/x", b""))
    for second in range(76):
        await clock.advance(1)
        if second % 5 == 0:  # answer every ping, but never the open
            for n in range(10):
                await right.send([bytes.fromhex("000200020000000000000000")[:8] + n.to_bytes(4, "big")])
    with pytest.raises(ConnectionLostError, match="not acknowledged"):
        await call
    await client.aclose()


async def test_a_broken_transport_fails_every_call(clock: ManualClock) -> None:
    async def hang(_: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with joined({"/hang": Unary(hang)}, clock) as (client, server, left, _right):
        calls = [asyncio.create_task(client.unary("/hang", b"")) for _ in range(5)]
        ping = asyncio.create_task(server.ping(5))
        await settle()
        await ping
        await left.break_off()
        for call in calls:
            with pytest.raises(ConnectionLostError, match="reset by peer"):
                await call
        with pytest.raises(ConnectionLostError):
            await client.unary("/hang", b"")
        assert "reset by peer" in str(await client.wait_closed())


async def test_a_peer_that_takes_nothing_is_dropped(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    right.stalled = True
    call = asyncio.create_task(client.unary("/x", b"x" * 1000))
    for _ in range(25):
        await clock.advance(1)
    with pytest.raises(ConnectionLostError, match="did not take data"):
        await call
    closing = asyncio.create_task(client.aclose())
    await clock.advance(6)
    await closing


@pytest.mark.spec("agent-api", 24)
async def test_replies_in_one_frame_with_close(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()

    async def answer(stream_id: int, frames: bytes) -> None:
        await settle()
        assert bytes.fromhex("00010004") + stream_id.to_bytes(4, "big") not in bytes(left.sent), "FIN before the reply"
        header = bytes.fromhex("00000000") + stream_id.to_bytes(4, "big") + len(frames).to_bytes(4, "big")
        ack = bytes.fromhex("00010002") + stream_id.to_bytes(4, "big") + bytes(4)
        await right.send([ack, header, frames])

    for stream_id, ending in ((1, "0d010200"), (3, "0b010200"), (5, "")):
        call: Awaitable[bytes] = asyncio.create_task(client.unary("/x", b""))
        await answer(stream_id, bytes.fromhex("05010102") + b"ok" + bytes.fromhex(ending))
        assert await call == b"ok"
        await settle()
        assert bytes.fromhex("00010004") + stream_id.to_bytes(4, "big") in bytes(left.sent)
    call = asyncio.create_task(client.unary("/x", b""))
    await answer(7, bytes.fromhex("0b010100"))
    with pytest.raises(StreamBrokenError, match="without an answer"):
        await call
    await client.aclose()
