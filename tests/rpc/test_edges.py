"""What happens when one side stalls, gives up, misbehaves or ends in the middle of something."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.drpc import Kind, encode_error, encode_packet
from agent.protocol.yamux import HEADER, WINDOW, ProtocolViolationError, Role
from agent.rpc import (
    ConnectionLostError,
    Handler,
    MuxConnection,
    RpcClient,
    RpcError,
    RpcServer,
    ServerStream,
    StreamBrokenError,
    Streaming,
    Unary,
)
from agent.rpc.connection import MuxStream
from agent.testing import ManualClock, memory_pair, settle
from tests.rpc.test_calls import echo, joined


def request(path: str, payload: bytes, stream_id: int = 1) -> bytes:
    return (
        encode_packet(Kind.INVOKE, stream_id, 1, path.encode())
        + encode_packet(Kind.MESSAGE, stream_id, 2, payload)
        + encode_packet(Kind.CLOSE_SEND, stream_id, 3)
    )


class Waiting:
    """A handler that takes nothing and waits; it counts how often it began and was cancelled."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0

    async def __call__(self, _: ServerStream) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1


# ---- stalls


@pytest.mark.spec("agent-api", 21)
async def test_last_words_that_are_stuck_do_not_keep_a_dead_connection(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    await clock.advance(35)
    right.stalled = True
    call = asyncio.create_task(client.unary("/x", b""))
    await settle()
    await clock.advance(5)  # the ping of second 30 is due
    with pytest.raises(ConnectionLostError, match="ping"):
        await call
    closed = asyncio.create_task(client.wait_closed())
    await clock.advance(5)  # and the write that began at second 35
    assert "did not take data" in str(await closed)
    await client.aclose()


async def test_messages_that_a_handler_does_not_take_are_bounded(clock: ManualClock) -> None:
    handler = Waiting()
    async with joined({"/wait": Streaming(handler), "/echo": Unary(echo)}, clock) as (client, _, left, _right):
        async with await client.duplex("/wait") as call:

            async def push() -> None:
                while True:
                    await call.send(bytes(50_000))

            pushing = asyncio.create_task(push())
            await settle(200)
            assert len(left.sent) < 3 * WINDOW + 100_000
            assert await client.unary("/echo", b"free") == b"free"
            pushing.cancel()
            await settle()
        await settle()
        assert handler.cancelled == 1, "the end of the stream is seen behind messages that nobody takes"


@pytest.mark.spec("agent-api", 23)
async def test_the_end_of_a_stream_is_seen_behind_unread_messages(clock: ManualClock) -> None:
    handler = Waiting()
    async with joined({"/wait": Streaming(handler)}, clock) as (client, _, left, _right):
        async with await client.duplex("/wait") as call:
            for _ in range(6):
                await call.send(bytes(50_000))
            await settle(50)
            assert (handler.begun, handler.cancelled) == (1, 0)
        await settle()
        assert handler.cancelled == 1
        assert bytes.fromhex("00010008") not in bytes(left.sent), "given up by FIN, not by RST"


async def test_packets_that_are_put_together_are_bounded_over_a_connection(clock: ManualClock) -> None:
    left, right = memory_pair()
    server = RpcServer(right, {"/echo": Unary(echo)}, clock)
    serving = asyncio.create_task(server.serve())
    client = MuxConnection(left, Role.CLIENT, clock)
    client.start()
    whole = request("/echo", bytes(1_000_000))
    stalled = []
    for _ in range(16):
        stream = await client.open_stream()
        await stream.write(whole[:500_000])
        stalled.append(stream)
    late = await client.open_stream()
    writing = asyncio.create_task(late.write(whole))
    await settle(100)
    assert not writing.done()
    small = await client.open_stream()
    await small.write(request("/echo", b"small"))
    assert b"small" in await small.read()
    finishing = asyncio.create_task(stalled[0].write(whole[500_000:]))
    await settle(100)
    assert writing.done(), "one packet is complete, the next may grow"
    await finishing
    await client.aclose()
    await serving


async def test_40_large_calls_at_once(clock: ManualClock) -> None:
    async with joined({"/echo": Unary(echo)}, clock) as (client, *_):
        answers = await asyncio.gather(*(client.unary("/echo", bytes(1_000_000)) for _ in range(40)))
        assert all(len(answer) == 1_000_000 for answer in answers)


@pytest.mark.spec("agent-api", 20)
async def test_a_client_that_exceeds_its_window_is_told_and_closed(clock: ManualClock) -> None:
    left, right = memory_pair()
    handler = Waiting()
    server = RpcServer(right, {"/wait": Streaming(handler)}, clock)
    serving = asyncio.create_task(server.serve())
    await left.send([bytes.fromhex("000100010000000100000000")])
    taken = request("/wait", bytes(300_000))  # all that the server takes for a handler that takes nothing
    for part in (taken[:150_000], taken[150_000:], bytes(WINDOW), b"x"):
        assert not serving.done()
        await left.send([bytes.fromhex("0000000000000001") + len(part).to_bytes(4, "big") + part])
        await settle()
    assert isinstance(await serving, ProtocolViolationError)
    assert right.sent.endswith(bytes.fromhex("000300000000000000000001"))
    assert right.closed_with is not None
    assert handler.cancelled == 1


# ---- giving up


async def test_a_send_that_is_cancelled_half_way_resets_the_stream(clock: ManualClock) -> None:
    handler = Waiting()
    async with joined({"/wait": Streaming(handler), "/echo": Unary(echo)}, clock) as (client, _, left, _right):
        async with await client.duplex("/wait") as call:
            await call.send(bytes(300_000))  # all that the server takes for a handler that takes nothing
            sending = asyncio.create_task(call.send(bytes(600_000)))
            await settle(50)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(StreamBrokenError, match="reset"):
                await call.send(b"the middle of a packet")
        await settle()
        assert bytes.fromhex("000100080000000100000000") in bytes(left.sent)
        assert handler.cancelled == 1
        assert await client.unary("/echo", b"on") == b"on"


async def test_calls_cancelled_at_any_moment_leave_nothing(clock: ManualClock) -> None:
    async with joined({"/echo": Unary(echo)}, clock) as (client, server, *_):
        for size in (10, 600_000):
            for turns in range(40):
                call = asyncio.create_task(client.unary("/echo", bytes(size)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                with suppress(asyncio.CancelledError):
                    await call
        await settle(100)
        for end in (client, server):
            assert end._connection._streams == {}
            assert end._connection._session._streams == {}
        assert await client.unary("/echo", b"on") == b"on"


async def test_a_wait_for_an_open_that_is_cancelled(clock: ManualClock) -> None:
    left, _right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    calls = [asyncio.create_task(client.unary("/x", b"")) for _ in range(300)]
    await settle()
    for call in calls:
        call.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True))
    await client.aclose()


# ---- an answer before the whole request


async def test_a_server_that_refuses_early_is_heard(clock: ManualClock) -> None:
    async def refuse(_: ServerStream) -> None:
        raise RpcError("too much")

    async with joined({"/refuse": Streaming(refuse)}, clock) as (client, *_):
        with pytest.raises(RpcError, match="too much"):
            await client.unary("/refuse", bytes(3_000_000))


async def test_a_server_that_refuses_and_reads_no_more_is_heard(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/x", bytes(1_000_000)))
    await settle()
    refusal = encode_packet(Kind.ERROR, 1, 1, encode_error(0, "no"))
    frame = bytes.fromhex("0000000400000001") + len(refusal).to_bytes(4, "big") + refusal
    await right.send([bytes.fromhex("000100020000000100000000"), frame])
    with pytest.raises(RpcError, match="no"):
        await call
    await client.aclose()


async def test_a_server_that_breaks_a_rule_fails_one_call(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/x", b""))
    await settle()
    await right.send([bytes.fromhex("000100020000000100000000 0000000000000001000000 04 51010200")])
    with pytest.raises(StreamBrokenError, match="unknown packet kind 40"):
        await call
    assert not client._connection.closed
    await client.aclose()


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (encode_packet(Kind.ERROR, 1, 3, encode_error(7, "half way")), RpcError),
        (encode_packet(Kind.CANCEL, 1, 3), StreamBrokenError),
    ],
)
async def test_messages_that_came_before_a_failure_are_read_before_it(
    clock: ManualClock, ending: bytes, error: type[Exception]
) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await client.start()
    async with await client.duplex("/x") as call:
        packets = encode_packet(Kind.MESSAGE, 1, 1, b"a") + encode_packet(Kind.MESSAGE, 1, 2, b"b") + ending
        frame = bytes.fromhex("0000000000000001") + len(packets).to_bytes(4, "big") + packets
        await right.send([bytes.fromhex("000100020000000100000000"), frame])
        assert [await call.receive(), await call.receive()] == [b"a", b"b"]
        for _ in range(2):
            with pytest.raises(error):
                await call.receive()
        with pytest.raises(StreamBrokenError, match="over"):
            await call.send(b"x")
    await client.aclose()


# ---- several calls on one stream


@pytest.mark.spec("agent-api", 23)
async def test_calls_follow_each_other_on_one_stream(clock: ManualClock) -> None:
    handler = Waiting()
    left, right = memory_pair()
    server = RpcServer(right, {"/echo": Unary(echo), "/wait": Streaming(handler)}, clock)
    serving = asyncio.create_task(server.serve())
    client = MuxConnection(left, Role.CLIENT, clock)
    client.start()
    stream = await client.open_stream()
    await stream.write(request("/echo", b"one", 1))
    assert await stream.read() == bytes.fromhex("05010103") + b"one" + bytes.fromhex("0d010200")
    await stream.write(request("/wait", b"", 2))
    await settle()
    await stream.write(encode_packet(Kind.CANCEL, 2, 4))
    await settle()
    assert handler.cancelled == 1
    # An Invoke ends the call before it, with and without its handler having begun.
    await stream.write(request("/wait", b"", 3))
    await settle()
    await stream.write(request("/wait", b"", 4) + request("/echo", b"five", 5))
    assert await stream.read() == bytes.fromhex("05050104") + b"five" + bytes.fromhex("0d050200")
    assert handler.begun == handler.cancelled
    await client.aclose()
    await serving


async def test_a_client_that_breaks_a_rule_loses_one_stream(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    left, right = memory_pair()
    server = RpcServer(right, {"/echo": Unary(echo)}, clock)
    serving = asyncio.create_task(server.serve())
    client = MuxConnection(left, Role.CLIENT, clock)
    client.start()
    broken, fine = await client.open_stream(), await client.open_stream()
    await broken.write(encode_packet(Kind.INVOKE, 1, 1, b"/echo") * 2)
    with pytest.raises(StreamBrokenError, match="reset"):
        await broken.read()
    assert "broke a rule of dRPC" in caplog.text
    await fine.write(request("/echo", b"on"))
    assert b"on" in await fine.read()
    await client.aclose()
    await serving


# ---- ends


async def test_cancelling_serve_ends_the_handlers_and_the_connection(clock: ManualClock) -> None:
    handler = Waiting()
    left, right = memory_pair()
    serving = asyncio.create_task(RpcServer(right, {"/wait": Streaming(handler)}, clock).serve())
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/wait", b""))
    await settle()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert handler.cancelled == 1
    with pytest.raises(ConnectionLostError):
        await call
    assert right.closed_with == (1000, "")
    await client.aclose()


async def test_a_handler_that_does_not_end_is_named_and_not_waited_for(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def stubborn(_: bytes) -> bytes:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return b""

    left, right = memory_pair()
    server = RpcServer(right, {"/stubborn": Unary(stubborn)}, clock)
    serving = asyncio.create_task(server.serve())
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/stubborn", b""))
    await settle()
    with caplog.at_level(logging.ERROR):
        closing = asyncio.create_task(server.aclose(1011, "the build is outdated"))
        await clock.advance(10)
        await closing
    assert "rpc /stubborn" in caplog.text
    assert right.closed_with == (1011, "the build is outdated")
    release.set()
    await clock.advance(10)
    await serving
    with pytest.raises(ConnectionLostError):
        await call
    await client.aclose()


async def test_a_handler_ends_in_order(clock: ManualClock) -> None:
    ended_in_order = []

    async def careful(_: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            await clock.sleep(3)
            ended_in_order.append(True)
        return b""

    left, right = memory_pair()
    server = RpcServer(right, {"/careful": Unary(careful)}, clock)
    serving = asyncio.create_task(server.serve())
    client = RpcClient(left, clock)
    await client.start()
    call = asyncio.create_task(client.unary("/careful", b""))
    await settle()
    await client.aclose()
    await clock.advance(2)
    assert not serving.done()
    await clock.advance(1)
    await serving
    assert ended_in_order == [True]
    with pytest.raises(ConnectionLostError):
        await call


async def test_closing_twice_and_without_a_start(clock: ManualClock) -> None:
    left, right = memory_pair()
    client = RpcClient(left, clock)
    await asyncio.gather(client.aclose(), client.aclose())
    assert await client.wait_closed() is None
    with pytest.raises(ConnectionLostError, match="was closed"):
        await client.unary("/x", b"")
    assert await right.receive() == b""


async def test_serving_what_was_closed_before(clock: ManualClock) -> None:
    left, right = memory_pair()
    server = RpcServer(right, {}, clock)
    await server.aclose(1001, "shutting down")
    assert await server.serve() is None
    assert right.closed_with == (1001, "shutting down")
    assert await left.receive() == b""


async def test_the_first_close_counts_and_goes_on_without_its_caller(clock: ManualClock) -> None:
    left, right = memory_pair()
    server = RpcServer(right, {"/echo": Unary(echo)}, clock)
    serving = asyncio.create_task(server.serve())
    await settle()
    closing = asyncio.create_task(server.aclose(1011, "why"))
    await asyncio.sleep(0)
    closing.cancel()
    await serving
    assert right.closed_with == (1011, "why")
    assert await left.receive() == b""


async def test_a_defect_of_a_transport_ends_the_connection_with_its_cause(clock: ManualClock) -> None:
    left, _right = memory_pair()

    async def receive() -> bytes:
        raise ZeroDivisionError("a defect")

    left.receive = receive  # type: ignore[method-assign]
    client = RpcClient(left, clock)
    await client.start()
    assert isinstance(await client.wait_closed(), ZeroDivisionError)
    await client.aclose()


# ---- very many small frames


async def test_a_message_of_very_many_frames_does_not_hold_up_the_loop(clock: ManualClock) -> None:
    async with joined({}, clock) as (_, _server, left, _right):
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        others = asyncio.create_task(take_turns())
        ping = HEADER.pack(0, 2, 1, 0, 7)
        await left.send([HEADER.pack(0, 1, 0, 1, 1) * 80_000 + ping])
        while b"".join(left._inbox) != HEADER.pack(0, 2, 2, 0, 7):
            await asyncio.sleep(0)
        others.cancel()
        assert turns > 80_000 * HEADER.size / 65_536


async def test_unread_data_in_small_frames_takes_no_more_memory_than_its_bytes(clock: ManualClock) -> None:
    left, _right = memory_pair()
    stream = MuxStream(MuxConnection(left, Role.SERVER, clock), 1)
    tracemalloc.start()
    try:
        for _ in range(WINDOW // 2):
            stream.feed(bytes(2))
        assert tracemalloc.get_traced_memory()[0] < 2 * WINDOW
    finally:
        tracemalloc.stop()


# ---- anything at all


frames = st.builds(
    lambda kind, flags, stream, data: (
        bytes((0, kind, 0, flags))
        + stream.to_bytes(4, "big")
        + len(data).to_bytes(4, "big")
        + (data if not kind else b"")
    ),
    st.integers(0, 3),
    st.integers(0, 15),
    st.integers(0, 4),
    st.one_of(st.binary(max_size=20), st.just(request("/echo", b"x")), st.just(request("/wait", b"x"))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(frames, st.binary(max_size=20)), max_size=8))
def test_a_peer_that_sends_anything_ends_neither_side_but_by_an_error(parts: list[bytes]) -> None:
    async def run() -> None:
        clock = ManualClock()
        handlers: dict[str, Handler] = {"/echo": Unary(echo), "/wait": Streaming(Waiting())}
        near, far = memory_pair()
        server = RpcServer(near, handlers, clock)
        serving = asyncio.create_task(server.serve())
        ours, peer = memory_pair()
        client = RpcClient(ours, clock)
        await client.start()
        calls = [asyncio.create_task(client.unary("/x", b"")) for _ in range(2)]
        for part in parts:
            for end in (far, peer):
                with suppress(Exception):  # it was closed because of what we sent
                    await end.send([part])
            await settle()
        await far.aclose()
        await peer.aclose()
        await serving
        await client.aclose()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, (bytes, ConnectionLostError, StreamBrokenError, RpcError))

    asyncio.run(run())
