"""dRPC packets and calls, byte by byte (agent-api.md §6.3-6.5)."""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol.drpc import (
    MAX_ERROR_TEXT,
    MAX_FRAME,
    MAX_PACKET,
    CallEnded,
    CallFailed,
    ClientCall,
    DrpcError,
    Invoked,
    Kind,
    MessageReceived,
    Packet,
    PacketReader,
    SendingEnded,
    ServerCall,
    ServerTransport,
    decode_error,
    decode_metadata,
    encode_error,
    encode_metadata,
    encode_packet,
    encode_varint,
)

PATH = "/coder.agent.v2.Agent/GetAnnouncementBanners"
INVOKE = bytes.fromhex("0301012c") + PATH.encode()
EMPTY_MESSAGE = bytes.fromhex("05010200")
CLOSE_SEND = bytes.fromhex("0d010300")
BANNER = bytes.fromhex("0a0f0801120248691a0723666630303030")


def frame(control: int, stream: int, message: int, data: bytes = b"") -> bytes:
    return bytes((control,)) + encode_varint(stream) + encode_varint(message) + encode_varint(len(data)) + data


def kinds(packets: Sequence[Packet]) -> list[tuple[Kind, int, int, bytes]]:
    return [(packet.kind, packet.stream_id, packet.message_id, packet.data) for packet in packets]


# ---- the frames of §6.5


WORKED = [
    (INVOKE, Kind.INVOKE, 1, PATH.encode()),
    (EMPTY_MESSAGE, Kind.MESSAGE, 2, b""),
    (CLOSE_SEND, Kind.CLOSE_SEND, 3, b""),
    (bytes.fromhex("05010111") + BANNER, Kind.MESSAGE, 1, BANNER),
    (bytes.fromhex("0d010200"), Kind.CLOSE_SEND, 2, b""),
    (bytes.fromhex("0b010400"), Kind.CLOSE, 4, b""),
    (bytes.fromhex("89010400"), Kind.CANCEL, 4, b""),
    (bytes.fromhex("0f010108 0a060a0161120162"), Kind.INVOKE_METADATA, 1, encode_metadata({"a": "b"})),
    (bytes.fromhex("07010115 000000000000000c 556e696d706c656d656e746564"), Kind.ERROR, 1,
     encode_error(12, "Unimplemented")),
    (bytes.fromhex("07010141 0000000000000000 70726f746f636f6c206572726f723a20756e6b6e6f776e20") + b'rpc: "'
     + b'/coder.agent.v2.Agent/Nope"', Kind.ERROR, 1,
     encode_error(0, 'protocol error: unknown rpc: "/coder.agent.v2.Agent/Nope"')),
]  # fmt: skip


@pytest.mark.spec("agent-api", 17)
@pytest.mark.parametrize(("wire", "kind", "message_id", "payload"), WORKED, ids=lambda value: str(value)[:12])
def test_the_worked_frames(wire: bytes, kind: Kind, message_id: int, payload: bytes) -> None:
    assert encode_packet(kind, 1, message_id, payload) == wire
    for cut in range(len(wire) + 1):
        reader = PacketReader()
        assert kinds(reader.feed(wire[:cut]) + reader.feed(wire[cut:])) == [(kind, 1, message_id, payload)]
        assert reader.buffered == 0


@pytest.mark.spec("agent-api", 17, 18)
def test_a_long_message_is_split_into_frames_of_65536_bytes() -> None:
    payload = bytes(range(256)) * 2000  # 512,000 bytes
    wire = encode_packet(Kind.MESSAGE, 1, 2, payload)
    assert wire.startswith(bytes.fromhex("040102808004") + payload[:MAX_FRAME])
    assert len(wire) - len(payload) == 8 * 6, "8 frames, each with 6 bytes of header"
    assert wire[7 * (MAX_FRAME + 6)] == 5, "the last one is done"
    assert kinds(PacketReader().feed(wire)) == [(Kind.MESSAGE, 1, 2, payload)]


# ---- the reader's rules


def test_ids_grow() -> None:
    for second in (frame(5, 1, 1), frame(5, 1, 0), frame(5, 0, 9)):
        reader = PacketReader()
        assert len(reader.feed(frame(5, 1, 1))) == 1
        with pytest.raises(DrpcError, match="after <1,1>"):
            reader.feed(second)
    assert len(PacketReader().feed(frame(5, 1, 7) + frame(5, 1, 9) + frame(5, 2, 1) + frame(5, 300, 1))) == 4


def test_a_new_id_discards_an_unfinished_packet() -> None:
    wire = frame(4, 1, 1, b"lost") + frame(4, 1, 2, b"ke") + frame(5, 1, 2, b"pt")
    assert kinds(PacketReader().feed(wire)) == [(Kind.MESSAGE, 1, 2, b"kept")]
    with pytest.raises(DrpcError):
        PacketReader().feed(frame(4, 1, 2, b"x") + frame(5, 1, 1, b"y"))


def test_a_packet_has_one_kind() -> None:
    with pytest.raises(DrpcError, match="kind"):
        PacketReader().feed(frame(4, 1, 1, b"x") + frame(7, 1, 1, b"y"))


def test_unknown_kinds() -> None:
    known = frame(5, 1, 2, b"x")
    assert kinds(PacketReader().feed(frame(0x80 | 40 << 1 | 1, 1, 1, b"?") + known)) == [(Kind.MESSAGE, 1, 2, b"x")]
    with pytest.raises(DrpcError, match="unknown packet kind 40"):
        PacketReader().feed(frame(40 << 1 | 1, 1, 1, b"?") + known)


def test_the_control_bit_of_a_known_kind_means_nothing() -> None:
    assert kinds(PacketReader().feed(frame(0x85, 1, 1, b"x"))) == [(Kind.MESSAGE, 1, 1, b"x")]
    assert kinds(PacketReader().feed(frame(0x09, 1, 1))) == [(Kind.CANCEL, 1, 1, b"")]


def test_the_largest_packet_and_one_byte_more() -> None:
    payload = bytes(MAX_PACKET)
    assert len(PacketReader().feed(encode_packet(Kind.MESSAGE, 1, 1, payload))[0].data) == MAX_PACKET
    assert len(PacketReader().feed(frame(5, 1, 1, payload))[0].data) == MAX_PACKET, "in one frame"
    header = frame(5, 1, 1, bytes(MAX_PACKET + 1))[: 1 + 1 + 1 + 4]
    with pytest.raises(DrpcError, match="overflow"):
        PacketReader().feed(header)  # before a byte of data came
    reader = PacketReader()
    for _ in range(MAX_PACKET // MAX_FRAME):
        reader.feed(frame(4, 1, 1, bytes(MAX_FRAME)))
    assert reader.buffered == MAX_PACKET
    with pytest.raises(DrpcError, match="overflow"):
        reader.feed(frame(4, 1, 1, b"x"))


@pytest.mark.parametrize("data", [b"", b"ab"])
def test_many_small_frames_of_one_packet_take_no_more_memory_than_their_data(data: bytes) -> None:
    reader = PacketReader()
    wire, times = frame(4, 1, 1, data) * 5_000, 20
    tracemalloc.start()
    try:
        for _ in range(times):
            reader.feed(wire)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * len(data) * 5_000 * times + 20_000
    assert kinds(reader.feed(frame(5, 1, 1))) == [(Kind.MESSAGE, 1, 1, data * 5_000 * times)]


def test_varints() -> None:
    assert encode_varint(0) == b"\0"
    assert encode_varint(300) == b"\xac\x02"
    assert encode_varint(2**64 - 1) == b"\xff" * 9 + b"\x01"
    largest = 2**64 - 1
    assert kinds(PacketReader().feed(frame(5, largest, largest, b"x"))) == [(Kind.MESSAGE, largest, largest, b"x")]
    for too_long in (b"\x80" * 10, b"\xff" * 9 + b"\x02"):
        with pytest.raises(DrpcError, match="varint"):
            PacketReader().feed(b"\x05" + too_long)


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**64 - 1), st.binary(max_size=50), st.sampled_from(Kind))
def test_round_trip(stream: int, message: int, payload: bytes, kind: Kind) -> None:
    assert kinds(PacketReader().feed(encode_packet(kind, stream, message, payload))) == [
        (kind, stream, message, payload)
    ]


# ---- the data of some packets


def test_error_texts() -> None:
    assert decode_error(encode_error(2**64 - 1, "größer")) == (2**64 - 1, "größer")
    assert decode_error(encode_error(0, "\udc80")) == (0, "?")
    code, text = decode_error(encode_error(0, "ä" * MAX_ERROR_TEXT))
    assert text == "ä" * (MAX_ERROR_TEXT // 2)
    code, text = decode_error(encode_error(0, "x" + "ä" * MAX_ERROR_TEXT))
    assert (code, len(text)) == (0, MAX_ERROR_TEXT // 2), "cut between characters"
    assert decode_error(bytes(8) + b"\xff") == (0, "\ufffd")
    with pytest.raises(DrpcError, match="7 bytes"):
        decode_error(bytes(7))


@given(st.dictionaries(st.text(max_size=200), st.text(max_size=200), max_size=4))
def test_metadata_round_trip(metadata: dict[str, str]) -> None:
    assert decode_metadata(encode_metadata(metadata)) == metadata


@pytest.mark.parametrize(
    "wire",
    ["0a", "0a05", "0b00", "0a020a05", "0a020b00", "0a030a01ff", "0aff", "0a" + "ff" * 10, "0a0180"],
)
def test_malformed_metadata(wire: str) -> None:
    with pytest.raises(DrpcError):
        decode_metadata(bytes.fromhex(wire))


@given(st.binary(max_size=40))
def test_any_metadata_is_read_or_refused(wire: bytes) -> None:
    with contextlib.suppress(DrpcError):
        decode_metadata(wire)


# ---- calls


def server_call(*frames: bytes) -> tuple[ServerTransport, ServerCall]:
    transport = ServerTransport()
    event = transport.receive(INVOKE + b"".join(frames))[0]
    assert isinstance(event, Invoked)
    return transport, event.call


def test_a_unary_call_from_both_sides() -> None:
    call = ClientCall(PATH)
    request = call.invoke() + call.message(b"") + call.close_send()
    assert request == INVOKE + EMPTY_MESSAGE + CLOSE_SEND
    transport = ServerTransport()
    invoked, message, ended = transport.receive(request)
    assert isinstance(invoked, Invoked)
    assert (invoked.call.path, invoked.call.metadata) == (PATH, {})
    assert [message, ended] == [MessageReceived(b""), SendingEnded()]
    assert not invoked.call.ended
    reply = invoked.call.message(BANNER) + invoked.call.close_send()
    assert reply == bytes.fromhex("05010111") + BANNER + bytes.fromhex("0d010200")
    assert invoked.call.ended
    assert call.receive(reply) == [MessageReceived(BANNER), SendingEnded()]
    assert call.ended
    assert transport.receive(bytes.fromhex("0b010400")) == [], "Close after the end is tolerated"


@pytest.mark.spec("agent-api", 24)
@pytest.mark.parametrize(
    ("ending", "event"),
    [("0d010200", SendingEnded()), ("0b010200", CallEnded()), ("89010200", CallEnded(cancelled=True))],
)
def test_the_ways_a_server_ends_a_call(ending: str, event: object) -> None:
    call = ClientCall("/x")
    call.invoke(), call.message(b""), call.close_send()
    assert call.receive(bytes.fromhex("0501010161" + ending)) == [MessageReceived(b"a"), event]
    assert call.ended
    assert call.receive(bytes.fromhex("0501090162")) == [], "nothing comes after the end"


def test_an_error_ends_a_call() -> None:
    call = ClientCall("/x")
    assert call.receive(bytes.fromhex("07010115000000000000000c556e696d706c656d656e746564")) == [
        CallFailed(12, "Unimplemented")
    ]
    assert call.ended


def test_a_bidirectional_call_ends_when_both_sides_closed_their_sending() -> None:
    call = ClientCall("/x")
    call.invoke()
    assert call.receive(frame(0x0D, 1, 1)) == [SendingEnded()]
    assert not call.ended
    call.message(b"more")
    call.close_send()
    assert call.ended


@pytest.mark.parametrize(("control", "cancelled"), [(0x0B, False), (0x89, True), (0x07, False)])
def test_the_ways_a_client_ends_a_call(control: int, cancelled: bool) -> None:
    transport, call = server_call()
    assert transport.receive(frame(control, 1, 2)) == [CallEnded(cancelled)]
    assert call.ended
    assert transport.receive(frame(5, 1, 3)) == []


def test_metadata_belongs_to_the_invoke_that_follows_it() -> None:
    transport = ServerTransport()
    wire = bytes.fromhex("0f0101080a060a0161120162") + frame(3, 1, 2, b"/a") + frame(3, 2, 1, b"/b")
    first, second = transport.receive(wire)
    assert isinstance(first, Invoked)
    assert isinstance(second, Invoked)
    assert (first.call.path, first.call.metadata) == ("/a", {"a": "b"})
    assert (second.call.path, second.call.metadata) == ("/b", {})
    with pytest.raises(DrpcError, match="metadata"):
        ServerTransport().receive(frame(0x0F, 1, 1, b"\xff"))


def test_a_later_invoke_ends_the_call_before_it() -> None:
    transport, first = server_call(EMPTY_MESSAGE)
    events = transport.receive(frame(3, 2, 1, b"/b") + frame(5, 2, 2, b"x"))
    assert isinstance(events[0], Invoked)
    assert first.ended
    assert events[1:] == [MessageReceived(b"x")]
    second = events[0].call
    assert second.message(b"y") == frame(5, 2, 1, b"y"), "each call numbers its own packets"
    assert first.error(0, "late")[1:3] == b"\x01\x01", "and keeps its own id"


def test_nothing_before_the_invoke_and_no_invoke_twice() -> None:
    assert ServerTransport().receive(frame(5, 1, 1, b"x") + frame(0x0D, 1, 2)) == []
    transport, _ = server_call()
    with pytest.raises(DrpcError, match="twice"):
        transport.receive(frame(3, 1, 2, b"/again"))


def test_a_message_of_more_than_4_mib_is_not_sent() -> None:
    _, call = server_call()
    for side in (ClientCall("/x"), call):
        with pytest.raises(DrpcError, match="4194305"):
            side.message(bytes(MAX_PACKET + 1))


# ---- properties

frames = st.builds(frame, st.integers(0, 255), st.integers(0, 3), st.integers(0, 6), st.binary(max_size=30))
wires = st.one_of(st.binary(max_size=100), st.lists(frames, max_size=12).map(b"".join))


def outcome(receive: object, parts: Sequence[bytes]) -> list[object]:
    assert callable(receive)
    events: list[object] = []
    try:
        for part in parts:
            for event in receive(part):
                call = getattr(event, "call", None)
                events.append(event if call is None else (call.stream_id, call.path, dict(call.metadata)))
    except DrpcError as error:
        return [str(error)]
    return events


@pytest.mark.spec("agent-api", 17)
@given(wires, st.lists(st.integers(1, 20), min_size=1))
def test_any_chunking_gives_the_same(wire: bytes, sizes: list[int]) -> None:
    """And any bytes give packets, events or a `DrpcError`, nothing else."""
    parts, at = [], 0
    for size in itertools.cycle(sizes):
        parts.append(wire[at : at + size])
        at += size
        if at >= len(wire):
            break
    assert outcome(PacketReader().feed, parts) == outcome(PacketReader().feed, [wire])
    assert outcome(ServerTransport().receive, parts) == outcome(ServerTransport().receive, [wire])
    assert outcome(ClientCall("/x").receive, parts) == outcome(ClientCall("/x").receive, [wire])
    reader = PacketReader()
    try:
        reader.feed(wire)
    except DrpcError:
        return
    assert reader.buffered <= len(wire)
