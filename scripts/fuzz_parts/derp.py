"""DERP: a client whose relay says anything, a relay whose client says anything, before and after the login."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from nacl.bindings import crypto_box_afternm

from agent.protocol import derp, keys
from agent.protocol.derp import ClientSession, DerpError, Kind, ServerSession
from fuzz_parts import Input

SERVER, CLIENT = bytes(range(1, 33)), bytes(range(2, 34))
BOX = keys.box_key(CLIENT, keys.public_key(SERVER))


def _fixed(size: int) -> bytes:
    return bytes(size)


def _logged_in() -> tuple[ClientSession, ServerSession]:
    client, server = ClientSession(CLIENT, home=True, random=_fixed), ServerSession(SERVER, _fixed)
    client.receive(b"".join(server.data_to_send()))
    server.receive(b"".join(client.data_to_send()))
    client.receive(b"".join(server.data_to_send()))
    assert client.logged_in
    return client, server


def seeds() -> Iterator[bytes]:
    for who in range(4):
        for kind in Kind:
            yield bytes((who, 0, kind, 40)) + bytes(40)
        yield bytes((who, 1)) + derp.packet_frame(Kind.SEND_PACKET, bytes(32), b"hello")
        for text in (b'{"a": [1]}', b'{"TokenBucketBytesPerSecond": 1, "TokenBucketBytesBurst": 2}'):
            yield bytes((who, 3, 1)) + derp.MAGIC + bytes((2, len(text))) + text


def target(data: bytes) -> None:
    given = Input(data)
    who = given.number() % 4
    session: ClientSession | ServerSession
    if who < 2:
        session = _logged_in()[who]
    else:
        session = ClientSession(CLIENT, home=True, random=_fixed) if who == 2 else ServerSession(SERVER, _fixed)
    total = 0
    try:
        while given:
            piece = _piece(given, client=who in (0, 2))
            total += len(piece)
            packets, _ = session.receive(piece)
            assert sum(len(datagram) for _, datagram in packets) <= total
            assert all(len(key) == 32 for key, _ in packets)
            assert sum(map(len, session.data_to_send())) <= total + 512
            assert session.buffered <= min(total, derp.MAX_CLIENT_FRAME)
            if isinstance(session, ClientSession) and session.greeted:
                for now in (1.0, 2.0):
                    session.packet(bytes(32), b"x", now)
            if isinstance(session, ServerSession) and not session.client_key:
                assert session.buffered <= derp.MAX_CLIENT_INFO
    except DerpError:
        return


def _piece(given: Input, *, client: bool) -> bytes:
    """A well-made frame, raw bytes, a frame with a box that opens, or a header with any length."""
    form = given.number() % 4
    if form == 0:
        kind = given.number()
        return derp.frame(kind, given.text())
    if form == 1:
        return given.text()
    if form == 2:
        sealed = bytes(24) + crypto_box_afternm(given.text(), bytes(24), BOX)
        if client:
            return derp.frame(Kind.SERVER_INFO, sealed)
        return derp.frame(Kind.CLIENT_INFO, keys.public_key(CLIENT) + sealed)
    return struct.pack(">BI", given.number(), given.number(4))
