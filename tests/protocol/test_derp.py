"""DERP against the vectors of tailnet.md §11.2, and both sessions against each other."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_box_afternm

from agent.protocol import derp
from agent.protocol.derp import ClientSession, DerpError, Kind, LoggedIn, ServerSession
from agent.protocol.keys import Random, box_key
from tests.protocol.test_keys import AGENT_NODE, CLIENT_NODE, DERP_SERVER

SERVER_KEY = bytes.fromhex("010000002844455250f09f949138ab664bd86f77d7e66bdd9ae0792913a94fd8b33a1260027e4b46c1f4884c67")
CLIENT_INFO = bytes.fromhex(
    """02000000687b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f7489
    2cb0f73f13000102030405060708090a0b0c0d0e0f1011121314151617bf7210
    943ca1e5c10ab0558ce89dc1a3e691c3ccdb754da7f4e186dd3c2d25367be6ef
    6701b92eb3bcc157dba3be712f"""
)
SERVER_INFO = bytes.fromhex(
    """0300000035404142434445464748494a4b4c4d4e4f50515253545556578c6c75
    5243c1fa4bbf489227761a98167f56338704362093d293ee3bd6"""
)
AGENT, CLIENT, SERVER = AGENT_NODE[1], CLIENT_NODE[1], DERP_SERVER[1]


def count_from(first: int) -> Random:
    return lambda size: bytes(range(first, first + size))


def client(home: bool = False) -> ClientSession:
    return ClientSession(AGENT_NODE[0], home=home, random=count_from(0))


def server() -> ServerSession:
    return ServerSession(DERP_SERVER[0], random=count_from(0x40))


def joined() -> tuple[ClientSession, ServerSession]:
    """A client and the relay, logged in."""
    ours, theirs = client(), server()
    ours.receive(b"".join(theirs.data_to_send()))
    assert theirs.receive(b"".join(ours.data_to_send())).events == [LoggedIn(AGENT)]
    assert ours.receive(b"".join(theirs.data_to_send())).events == [LoggedIn(SERVER)]
    return ours, theirs


@pytest.mark.spec("tailnet", 3)
def test_the_handshake_byte_for_byte() -> None:
    ours, theirs = client(), server()
    ours.set_home(True)
    assert not ours.has_data_to_send
    assert theirs.data_to_send() == [SERVER_KEY]
    assert not ours.greeted
    assert ours.receive(SERVER_KEY) == ([], [])
    assert ours.greeted
    assert ours.data_to_send() == [CLIENT_INFO, bytes.fromhex("070000000101")]
    assert theirs.receive(CLIENT_INFO).events == [LoggedIn(AGENT)]
    assert theirs.client_key == AGENT
    assert theirs.data_to_send() == [SERVER_INFO]
    assert ours.receive(SERVER_INFO).events == [LoggedIn(SERVER)]
    assert ours.logged_in


@pytest.mark.spec("tailnet", 3)
def test_small_frames() -> None:
    ours, theirs = joined()
    assert derp.KEEP_ALIVE.hex() == "0600000000"
    for home in (False, True, True, False):
        ours.set_home(home)
    assert [frame.hex() for frame in ours.data_to_send()] == ["070000000101", "070000000100"]
    ours.ping(bytes(range(1, 9)))
    (ping,) = ours.data_to_send()
    assert ping.hex() == "12000000080102030405060708"
    theirs.receive(ping)
    assert theirs.has_data_to_send
    assert theirs.data_to_send()[0].hex() == "13000000080102030405060708"
    gone = derp.peer_gone(CLIENT, derp.GoneReason.NOT_HERE)
    assert gone.hex() == "0800000021" + CLIENT.hex() + "01"
    datagram = bytes(124)
    assert ours.packet(CLIENT, datagram, 0.0) == b"\x04\0\0\0\x9c" + CLIENT + datagram
    assert derp.packet_frame(Kind.RECV_PACKET, CLIENT, datagram) == b"\x05\0\0\0\x9c" + CLIENT + datagram
    assert ours.receive(derp.KEEP_ALIVE + gone + gone[:4] + b"\x20" + CLIENT).events == [
        derp.PeerGone(CLIENT, 1),
        derp.PeerGone(CLIENT, 0),
    ]


@pytest.mark.spec("tailnet", 3, 34)
@given(st.integers(0, 8 * (len(CLIENT_INFO) - 37) - 1))
def test_a_flipped_bit_in_a_box_is_rejected(bit: int) -> None:
    wire = bytearray(CLIENT_INFO)
    wire[37 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(DerpError, match="does not open"):
        server().receive(bytes(wire))
    wire = bytearray(SERVER_INFO)
    wire[5 + bit // 8 % 53] ^= 1 << bit % 8
    ours = client()
    ours.receive(SERVER_KEY)
    with pytest.raises(DerpError, match="does not open"):
        ours.receive(bytes(wire))


def test_packets_both_ways_and_before_the_login_is_confirmed() -> None:
    ours, theirs = client(), server()
    ours.receive(b"".join(theirs.data_to_send()))
    sent = b"".join(ours.data_to_send()) + ours.packet(CLIENT, b"early", 0.0)
    received = theirs.receive(sent + derp.frame(Kind.NOTE_PREFERRED, b"\0"))
    assert received == ([(CLIENT, b"early")], [LoggedIn(AGENT), derp.Preferred(False)])
    received_back = ours.receive(derp.packet_frame(Kind.RECV_PACKET, CLIENT, b"back"))
    assert received_back.packets == [(CLIENT, b"back")]


def test_pongs_health_and_restarts() -> None:
    ours, _ = joined()
    wire = (
        derp.frame(Kind.PONG, b"12345678")
        + derp.frame(Kind.HEALTH, "dérangé".encode())
        + derp.frame(Kind.HEALTH)
        + derp.frame(Kind.RESTARTING, bytes.fromhex("000003e800001388"))
        + derp.frame(0x77, b"what nobody knows")
        + derp.frame(Kind.PEER_PRESENT, CLIENT)
    )
    assert ours.receive(wire).events == [
        derp.PongReceived(b"12345678"),
        derp.Health("dérangé"),
        derp.Health(""),
        derp.Restarting(1.0, 5.0),
    ]


@pytest.mark.spec("tailnet", 31, 37)
def test_one_pong_is_pending_at_most() -> None:
    ours, theirs = joined()
    for session in (ours, theirs):
        session.receive(b"".join(derp.frame(Kind.PING, bytes([n]) * 8) for n in range(100)))
        assert session.data_to_send() == [derp.frame(Kind.PONG, bytes(8))]
    theirs.receive(derp.frame(Kind.PING, b"12345678" + bytes(992)))
    assert theirs.data_to_send() == [derp.frame(Kind.PONG, b"12345678")]


@pytest.mark.spec("tailnet", 37)
@pytest.mark.parametrize("kind", [Kind.FORWARD_PACKET, Kind.WATCH_CONNS, Kind.CLOSE_PEER])
@pytest.mark.parametrize("size", [0, 32, 1 << 31])
def test_mesh_frames_end_the_connection(kind: Kind, size: int) -> None:
    _, theirs = joined()
    with pytest.raises(DerpError, match="the limit is"):
        theirs.receive(derp._HEADER.pack(kind, size))


@pytest.mark.parametrize(
    "wire",
    [
        derp._HEADER.pack(Kind.SEND_PACKET, 31) + bytes(31),
        derp._HEADER.pack(Kind.SEND_PACKET, 65536 + 33),
        derp.frame(Kind.NOTE_PREFERRED),
        derp._HEADER.pack(Kind.NOTE_PREFERRED, 2),
        derp.frame(Kind.PING, bytes(7)),
        derp._HEADER.pack(Kind.PING, 1001),
    ],
)
def test_frames_that_the_relay_does_not_take(wire: bytes) -> None:
    _, theirs = joined()
    with pytest.raises(DerpError):
        theirs.receive(wire)


@pytest.mark.spec("tailnet", 37)
def test_the_relay_passes_over_what_it_does_not_know() -> None:
    ours, theirs = joined()
    theirs.receive(derp._HEADER.pack(0x99, 3_000_000))
    for _ in range(30):
        assert theirs.receive(bytes(100_000)) == ([], [])
        assert theirs.buffered == 0
    assert theirs.receive(ours.packet(CLIENT, b"after", 0.0)).packets == [(CLIENT, b"after")]


@pytest.mark.parametrize(
    "wire",
    [
        derp.frame(Kind.SEND_PACKET, CLIENT + b"x"),
        derp.frame(0x99),
        derp._HEADER.pack(Kind.CLIENT_INFO, derp.MAX_CLIENT_INFO + 1),
        derp.frame(Kind.CLIENT_INFO, bytes(55)),
        derp.frame(Kind.CLIENT_INFO, bytes(100)),
        derp.frame(Kind.CLIENT_INFO, AGENT + bytes(24)),
    ],
)
def test_logins_that_are_refused(wire: bytes) -> None:
    with pytest.raises(DerpError):
        server().receive(wire)


@pytest.mark.parametrize("text", [b"", b"[]", b"nul", b"[" * 100_000, b"\xff"])
def test_a_login_that_is_no_json_object(text: bytes) -> None:
    nonce = bytes(24)
    box = crypto_box_afternm(text, nonce, box_key(AGENT_NODE[0], SERVER))
    with pytest.raises(DerpError, match="no JSON"):
        server().receive(derp.frame(Kind.CLIENT_INFO, AGENT + nonce + box))


@pytest.mark.parametrize(
    "wire",
    [
        derp.KEEP_ALIVE,
        derp.frame(Kind.RECV_PACKET, CLIENT),
        derp.frame(Kind.SERVER_KEY, b"HTTP/1.1 400 Bad Request, and so on until it is long enough"),
        derp.frame(Kind.SERVER_KEY, derp.MAGIC + SERVER[1:]),
        derp.frame(Kind.SERVER_KEY, derp.MAGIC + bytes(32)),
        SERVER_KEY + SERVER_KEY,
        SERVER_KEY + derp.frame(Kind.RECV_PACKET, bytes(31)),
        SERVER_KEY + derp.frame(Kind.PONG, bytes(7)),
        SERVER_KEY + derp.frame(Kind.PEER_GONE, bytes(31)),
        SERVER_KEY + derp.frame(Kind.RESTARTING, bytes(7)),
        SERVER_KEY + derp._HEADER.pack(Kind.RECV_PACKET, derp.MAX_CLIENT_FRAME + 1),
        SERVER_KEY + derp._HEADER.pack(0x99, derp.MAX_CLIENT_FRAME + 1),
    ],
)
def test_what_a_client_does_not_take(wire: bytes) -> None:
    with pytest.raises(DerpError):
        client().receive(wire)


def test_a_relay_may_ask_for_a_rate() -> None:
    ours = client()
    ours.receive(SERVER_KEY)
    info = {"version": 2, "tokenBucketBytesPerSecond": 100, "TokenBucketBytesBurst": 200}
    nonce = bytes(24)
    box = crypto_box_afternm(json.dumps(info).encode(), nonce, box_key(DERP_SERVER[0], AGENT))
    ours.receive(derp.frame(Kind.SERVER_INFO, nonce + box))
    assert ours.packet(CLIENT, bytes(63), 1.0)
    assert ours.packet(CLIENT, bytes(63), 1.0)
    assert ours.packet(CLIENT, bytes(63), 1.5) == b""
    assert ours.packet(CLIENT, bytes(63), 2.0)
    assert ours.packet(CLIENT, bytes(63), 99.0)
    assert ours.packet(CLIENT, bytes(63), 99.0)
    assert ours.packet(CLIENT, b"", 99.0) == b""


frames = st.lists(
    st.one_of(
        st.builds(lambda data: derp.frame(Kind.SEND_PACKET, CLIENT + data), st.binary(max_size=60)),
        st.builds(lambda data: derp.frame(Kind.PING, data), st.binary(min_size=8, max_size=9)),
        st.builds(derp.frame, st.sampled_from([0x55, 0x13, 0x06]), st.binary(max_size=60)),
        st.builds(lambda home: derp.frame(Kind.NOTE_PREFERRED, bytes([home])), st.booleans()),
    ),
    max_size=20,
)


@given(frames, st.data())
def test_where_the_bytes_are_cut_means_nothing(pieces: list[bytes], data: st.DataObject) -> None:
    wire = CLIENT_INFO + b"".join(pieces)
    whole = server().receive(wire)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=30)))
    session = server()
    packets, events = [], []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got = session.receive(wire[start:end])
        packets += got.packets
        events += got.events
    assert (packets, events) == whole
    assert session.buffered == 0


@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
def test_any_bytes(chunks: list[bytes], logged_in: bool) -> None:
    for session, start in ((client(), SERVER_KEY), (server(), CLIENT_INFO)):
        if logged_in:
            session.receive(start)
        try:
            for chunk in chunks:
                session.receive(chunk)
                assert session.buffered <= derp.MAX_CLIENT_FRAME + 5 + 300
        except DerpError:
            pass


def test_a_frame_in_single_bytes_costs_no_more_than_itself() -> None:
    _, theirs = joined()
    wire = derp.frame(Kind.SEND_PACKET, CLIENT + bytes(65536))
    tracemalloc.start()
    try:
        for at in range(len(wire)):
            packets = theirs.receive(wire[at : at + 1]).packets
        assert tracemalloc.get_traced_memory()[1] < 5 * len(wire)
    finally:
        tracemalloc.stop()
    assert packets == [(CLIENT, bytes(65536))]
