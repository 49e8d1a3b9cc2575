"""yamux and dRPC: a session whose peer sends any frames, and the calls in its streams, at both ends."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from agent.protocol import drpc, yamux
from agent.protocol.drpc import ClientCall, DrpcError, Kind, ServerTransport, encode_metadata, encode_packet
from agent.protocol.yamux import DataReceived, Role, SessionFailed, StreamOpened, YamuxSession
from fuzz_parts import Input

HEADER = struct.Struct(">BBHII")


def seeds() -> Iterator[bytes]:
    invoke = encode_packet(Kind.INVOKE, 1, 1, b"/a/b") + encode_packet(Kind.MESSAGE, 1, 2, b"hello")
    invoke += encode_packet(Kind.CLOSE_SEND, 1, 3)
    metadata = encode_packet(Kind.INVOKE_METADATA, 1, 1, encode_metadata({"a": "b"}))
    for role in (0, 1):
        yield bytes((role, 0, 0, 1, 1, len(invoke))) + invoke
        yield bytes((role, 0, 0, 1, 1, len(metadata + invoke))) + metadata + invoke
        for kind in range(4):
            for flags in (0, 1, 2, 4, 8):
                yield bytes((role, 1, kind, flags, 1, 0, 0, 0, 4))
        yield bytes((role, 3, 5, 4, 2, 100, 0))
    yield bytes((2,)) + encode_packet(Kind.MESSAGE, 1, 2, b"hello")
    yield bytes((2,)) + encode_packet(Kind.ERROR, 1, 2, drpc.encode_error(3, "no"))


def target(data: bytes) -> None:
    given = Input(data)
    role = given.number() % 3
    if role == 2:
        _client_call(given)
    else:
        _session(given, Role.SERVER if role == 0 else Role.CLIENT)


def _client_call(given: Input) -> None:
    call = ClientCall("/a/b")
    call.invoke()
    try:
        while given:
            call.receive(given.text())
    except DrpcError:
        return


def _session(given: Input, role: Role) -> None:
    session, now, total = YamuxSession(role, 0.0), 0.0, 0
    calls: dict[int, ServerTransport] = {}
    while given:
        match given.number() % 5:
            case 0:
                flags, stream = given.number(), given.number()
                text = given.text()
                data = HEADER.pack(0, 0, flags & 15, stream, len(text)) + text
            case 1:
                data = HEADER.pack(0, given.number() % 5, given.number() & 15, given.number(), given.number(4))
            case 2:
                data = given.text()
            case 3:
                now += given.number()
                session.handle_timeout(now)
                data = b""
            case _:
                data = b""
                if session.error is None:
                    _ours(session, given, now)
        total += len(data)
        for event in session.receive_data(data, now):
            match event:
                case StreamOpened(stream_id):
                    session.accept(stream_id)
                    calls[stream_id] = ServerTransport()
                case DataReceived(stream_id, part) if stream_id in calls:
                    session.consume(stream_id, len(part))
                    try:
                        calls[stream_id].receive(part)
                    except DrpcError:
                        session.reset(stream_id)
                        del calls[stream_id]
                case SessionFailed():
                    return
        assert len(session._streams) <= yamux.MAX_INCOMING_STREAMS + yamux.MAX_UNACKNOWLEDGED_OPENS
        assert session.pending <= yamux.MAX_PENDING_DATA + yamux.MAX_PENDING_CONTROL + 64
        assert sum(call.buffered for call in calls.values()) <= total
        if given.number() % 4 == 0:
            session.data_to_send()


def _ours(session: YamuxSession, given: Input, now: float) -> None:
    """What an owner does with streams that are there."""
    streams = list(session._streams)
    what = given.number() % 4
    if what == 0:
        with suppress(yamux.OpenRefusedError, yamux.OpenLimitError):
            session.open_stream(now)
    elif streams:
        stream = streams[given.number() % len(streams)]
        if what == 1:
            session.reset(stream)
        else:
            session.close(stream, now)
