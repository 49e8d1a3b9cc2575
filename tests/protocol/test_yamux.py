"""Playbooks of yamux: what is fed, what is expected (agent-api.md §6.2)."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import yamux
from agent.protocol.yamux import (
    ACK,
    FIN,
    RST,
    SYN,
    WINDOW,
    DataReceived,
    Event,
    FrameType,
    GoAwayCode,
    GoAwayReceived,
    PingAnswered,
    Role,
    SessionFailed,
    StreamAcknowledged,
    StreamFinished,
    StreamOpened,
    StreamReset,
    WindowOpened,
    YamuxSession,
)

SYN_1 = bytes.fromhex("000100010000000100000000")
ACK_1 = bytes.fromhex("000100020000000100000000")
FIN_1 = bytes.fromhex("000100040000000100000000")
RST_1 = bytes.fromhex("000100080000000100000000")
PING_0 = bytes.fromhex("000200010000000000000000")
PONG_0 = bytes.fromhex("000200020000000000000000")
GO_AWAY_1 = bytes.fromhex("000300000000000000000001")


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream_id, length) + payload


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(FrameType.DATA, flags, stream_id, len(payload), payload)


def written(session: YamuxSession) -> bytes:
    return b"".join(session.data_to_send())


def client() -> YamuxSession:
    return YamuxSession(Role.CLIENT, 0)


def server() -> YamuxSession:
    return YamuxSession(Role.SERVER, 0)


def opened() -> tuple[YamuxSession, int]:
    """A client with an acknowledged stream and nothing left to write."""
    session = client()
    stream = session.open_stream(0)
    assert session.receive_data(ACK_1, 0) == [StreamAcknowledged(1)]
    session.data_to_send()
    return session, stream


def accepted() -> YamuxSession:
    """A server that knows stream 1 and has nothing left to write."""
    session = server()
    assert session.receive_data(SYN_1, 0) == [StreamOpened(1)]
    assert written(session) == ACK_1
    session.accept(1)
    return session


def failure(events: list[Event]) -> yamux.SessionError:
    assert isinstance(events[-1], SessionFailed)
    return events[-1].error


# ---- one call from both sides


@pytest.mark.spec("agent-api", 17)
def test_the_worked_example_byte_by_byte() -> None:
    request, reply = b"q" * 56, b"r" * 21
    session = client()
    assert session.open_stream(0) == 1
    assert session.send(1, request) == 56
    assert written(session) == SYN_1 + bytes.fromhex("000000000000000100000038") + request
    assert session.receive_data(ACK_1, 0) == [StreamAcknowledged(1)]
    assert session.receive_data(data(1, reply), 0) == [DataReceived(1, reply)]
    session.close(1, 0)
    assert written(session) == FIN_1
    assert session.receive_data(FIN_1, 0) == [StreamFinished(1)]
    assert not session.knows(1)

    peer = server()
    assert peer.receive_data(SYN_1, 0) == [StreamOpened(1)]
    assert written(peer) == ACK_1
    assert peer.receive_data(data(1, request), 0) == [DataReceived(1, request)]
    assert peer.send(1, reply) == 21
    assert written(peer) == bytes.fromhex("000000000000000100000015") + reply
    assert peer.receive_data(FIN_1, 0) == [StreamFinished(1)]
    peer.close(1, 0)
    assert written(peer) == FIN_1
    assert not peer.knows(1)


def test_ids_are_odd_for_the_client_and_even_for_the_server() -> None:
    assert [client().open_stream(0), server().open_stream(0)] == [1, 2]
    session = client()
    assert [session.open_stream(0) for _ in range(3)] == [1, 3, 5]


# ---- opening


def test_256_opens_may_wait_for_their_ack() -> None:
    session = client()
    for _ in range(256):
        session.open_stream(0)
    assert session.open_slots == 0
    with pytest.raises(yamux.OpenLimitError):
        session.open_stream(0)
    session.receive_data(ACK_1, 0)
    assert session.open_stream(0) == 513


def test_a_refused_open_frees_its_place() -> None:
    session = client()
    for _ in range(256):
        session.open_stream(0)
    assert session.receive_data(RST_1, 0) == [StreamReset(1)]
    assert session.open_slots == 1
    with pytest.raises(yamux.StreamClosedError):
        session.send(1, b"x")


@pytest.mark.spec("agent-api", 21)
def test_an_open_without_ack_fails_the_session_after_75_seconds() -> None:
    session = client()
    session.open_stream(0)
    for now in (30, 60):
        session.handle_timeout(now)
        session.receive_data(frame(FrameType.PING, ACK, 0, now // 30 - 1), now)
    session.handle_timeout(74.9)
    assert session.error is None
    assert session.next_timeout() == 75
    assert isinstance(failure(session.handle_timeout(75)), yamux.OpenTimeoutError)


def test_an_ack_on_the_first_data_frame_counts() -> None:
    session = client()
    session.open_stream(0)
    assert session.receive_data(data(1, b"hi", ACK), 0) == [StreamAcknowledged(1), DataReceived(1, b"hi")]
    assert session.open_slots == 256


def test_a_second_ack_is_ignored() -> None:
    session, _ = opened()
    assert session.receive_data(ACK_1, 0) == []
    assert session.error is None


def test_an_open_may_bring_credit_and_data() -> None:
    session = server()
    assert session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, 1, 1000), 0) == [StreamOpened(1), WindowOpened(1)]
    assert session.receive_data(data(3, b"hi", SYN), 0) == [StreamOpened(3), DataReceived(3, b"hi")]


def test_streams_beyond_the_backlog_are_refused_and_their_data_drained() -> None:
    session = server()
    for n in range(256):
        session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, 2 * n + 1, 0), 0)
    session.data_to_send()
    assert session.receive_data(data(513, b"early", SYN) + data(513, b"late"), 0) == []
    assert written(session) == frame(FrameType.WINDOW_UPDATE, RST, 513, 0)
    session.accept(1)
    assert session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, 515, 0), 0) == [StreamOpened(515)]


def test_streams_known_at_once_are_bounded() -> None:
    session = server()
    for n in range(yamux.MAX_INCOMING_STREAMS):
        session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, 2 * n + 1, 0), 0)
        session.accept(2 * n + 1)
        session.data_to_send()
    over = 2 * yamux.MAX_INCOMING_STREAMS + 1
    assert session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, over, 0), 0) == []
    assert written(session) == frame(FrameType.WINDOW_UPDATE, RST, over, 0)
    session.receive_data(FIN_1, 0)
    session.close(1, 0)
    assert session.receive_data(frame(FrameType.WINDOW_UPDATE, SYN, over + 2, 0), 0) == [StreamOpened(over + 2)]


# ---- windows


def test_the_window_limits_what_is_sent() -> None:
    session, stream = opened()
    assert session.send(stream, b"x" * 300_000) == WINDOW
    assert session.send(stream, b"x") == 0
    assert len(written(session)) == WINDOW + 12
    assert session.credit(stream) == 0
    assert session.send(stream, b"x") == 0, "the window, not the outgoing buffer, is in the way"
    assert session.receive_data(frame(FrameType.WINDOW_UPDATE, 0, stream, 5), 0) == [WindowOpened(stream)]
    assert session.send(stream, b"123456789") == 5
    assert written(session) == data(stream, b"12345")


def test_what_waits_to_be_written_is_bounded_over_all_streams() -> None:
    session = client()
    streams = [session.open_stream(0) for _ in range(10)]
    taken = sum(session.send(stream, b"x" * WINDOW) for stream in streams)
    assert taken <= yamux.MAX_PENDING_DATA
    session.data_to_send()
    assert session.send(streams[5], b"x") == 1


def test_credit_is_given_back_once_it_is_worth_a_frame() -> None:
    session, stream = opened()
    half = WINDOW // 2
    session.receive_data(data(stream, b"x" * (half + 10)), 0)
    session.consume(stream, half - 1)
    assert written(session) == b""
    session.consume(stream, 1)
    assert written(session) == frame(FrameType.WINDOW_UPDATE, 0, stream, half)
    session.consume(stream, 10)
    assert written(session) == b"", "10 bytes are not worth a frame"


def test_no_credit_after_the_peers_fin() -> None:
    session, stream = opened()
    session.receive_data(data(stream, b"x" * WINDOW, FIN), 0)
    session.consume(stream, WINDOW)
    assert written(session) == b""


def test_more_cannot_be_consumed_than_came() -> None:
    session, stream = opened()
    session.receive_data(data(stream, b"abc"), 0)
    with pytest.raises(ValueError, match="4 bytes consumed"):
        session.consume(stream, 4)


@pytest.mark.spec("agent-api", 20)
def test_data_beyond_the_window_ends_the_session_with_go_away() -> None:
    session, stream = opened()
    session.receive_data(data(stream, b"x" * WINDOW), 0)
    assert isinstance(failure(session.receive_data(data(stream, b"x"), 0)), yamux.ProtocolViolationError)
    assert written(session) == GO_AWAY_1
    assert session.receive_data(data(stream, b"x"), 0) == []


# ---- closing


def test_the_other_direction_stays_open_after_a_fin() -> None:
    session, stream = opened()
    session.close(stream, 0)
    session.close(stream, 0)
    assert written(session) == FIN_1
    with pytest.raises(yamux.StreamClosedError):
        session.send(stream, b"x")
    assert session.receive_data(data(stream, b"still"), 0) == [DataReceived(stream, b"still")]
    assert session.receive_data(data(stream, b"end", FIN), 0) == [DataReceived(stream, b"end"), StreamFinished(stream)]
    assert not session.knows(stream)


def test_a_second_fin_breaks_the_rules_until_the_stream_is_forgotten() -> None:
    session = accepted()
    session.receive_data(FIN_1, 0)
    assert "closed twice" in str(failure(session.receive_data(FIN_1, 0)))
    assert written(session) == GO_AWAY_1
    session = accepted()
    session.receive_data(FIN_1, 0)
    session.close(1, 0)
    assert session.receive_data(FIN_1 + data(1, b"late") + RST_1, 0) == []
    assert session.error is None


def test_data_after_a_fin_is_dropped() -> None:
    session = accepted()
    session.receive_data(FIN_1, 0)
    assert session.receive_data(data(1, b"late"), 0) == []
    assert session.error is None


def test_a_peer_that_never_sends_its_fin_is_reset_after_5_minutes() -> None:
    session = accepted()
    session.close(1, 0)
    session.data_to_send()
    for now in range(30, 300, 30):
        session.handle_timeout(now)
        session.receive_data(frame(FrameType.PING, ACK, 0, now // 30 - 1), now)
    session.data_to_send()
    assert session.handle_timeout(300) == [StreamReset(1)]
    assert RST_1 in written(session)


@pytest.mark.parametrize("ours", [True, False])
def test_a_reset_is_the_end_of_a_stream_in_the_middle_of_a_payload(ours: bool) -> None:
    session = accepted()
    whole = data(1, b"x" * 100, FIN)
    assert session.receive_data(whole[:50], 0) == [DataReceived(1, b"x" * 38)]
    if ours:
        session.reset(1)
        session.reset(1)
        assert written(session) == RST_1
        assert session.receive_data(whole[50:], 0) == []
    else:
        session.receive_data(whole[50:], 0)
        assert session.receive_data(RST_1, 0) == [StreamReset(1)]
        assert written(session) == b""
    assert not session.knows(1)
    assert session.receive_data(PING_0, 0) == []
    assert written(session) == PONG_0


def test_unknown_streams_are_drained() -> None:
    session = client()
    assert session.receive_data(data(7, b"x" * 1000) + frame(1, 0, 9, 5) + FIN_1 + PING_0, 0) == []
    assert written(session) == PONG_0


# ---- ping, go away, violations


def test_a_ping_is_answered_and_timed() -> None:
    session = client()
    assert session.receive_data(PING_0, 0) == []
    assert written(session) == PONG_0
    assert session.ping(1) == 0
    assert written(session) == PING_0
    assert session.receive_data(PONG_0, 1.25) == [PingAnswered(0, 0.25)]
    assert session.receive_data(PONG_0, 2) == []
    forgotten = session.ping(2)
    session.forget_ping(forgotten)
    assert session.receive_data(frame(FrameType.PING, ACK, 0, forgotten), 3) == []


def test_unanswered_pings_are_bounded() -> None:
    session = client()
    for _ in range(yamux.MAX_PINGS):
        session.ping(0)
    with pytest.raises(yamux.PingLimitError):
        session.ping(0)
    assert session.handle_timeout(30) == []
    assert session.error is None


@pytest.mark.spec("agent-api", 21)
def test_keepalive() -> None:
    session = client()
    assert session.next_timeout() == 30
    assert session.handle_timeout(30) == []
    assert written(session) == PING_0
    assert session.receive_data(PONG_0, 31) == []
    assert session.next_timeout() == 61
    session.handle_timeout(61)
    assert session.next_timeout() == 71
    assert isinstance(failure(session.handle_timeout(71)), yamux.KeepaliveTimeoutError)
    assert session.next_timeout() is None
    assert session.handle_timeout(1000) == []


def test_go_away_0_stops_new_streams_only() -> None:
    session, stream = opened()
    assert session.receive_data(frame(FrameType.GO_AWAY, 0, 0, 0), 0) == [GoAwayReceived()]
    with pytest.raises(yamux.OpenRefusedError):
        session.open_stream(0)
    assert session.send(stream, b"on") == 2


def test_streams_opened_after_our_go_away_are_refused() -> None:
    session = server()
    session.go_away()
    assert written(session) == frame(FrameType.GO_AWAY, 0, 0, GoAwayCode.NORMAL)
    assert session.receive_data(SYN_1, 0) == []
    assert written(session) == RST_1


def test_go_away_with_an_error_ends_the_session() -> None:
    session = client()
    error = failure(session.receive_data(GO_AWAY_1, 0))
    assert isinstance(error, yamux.PeerGoneError)
    assert error.code == 1
    with pytest.raises(yamux.SessionClosedError):
        session.open_stream(0)
    with pytest.raises(yamux.SessionClosedError):
        session.ping(0)


@pytest.mark.parametrize(
    ("wire", "answered"),
    [
        (b"\x01" + SYN_1[1:], False),
        (b"\x00\x04" + SYN_1[2:], False),
        (SYN_1 + SYN_1, True),
        (frame(1, SYN, 2, 0), True),
        (frame(1, SYN, 0, 0), True),
    ],
    ids=["version", "type", "opened twice", "even id", "id 0"],
)
def test_a_broken_rule_ends_the_session(wire: bytes, answered: bool) -> None:
    session = server()
    assert isinstance(failure(session.receive_data(wire, 0)), yamux.ProtocolViolationError)
    assert written(session).endswith(GO_AWAY_1) is answered


def test_a_peer_that_asks_but_does_not_read_is_cut_off() -> None:
    session = server()
    with_limit = yamux.MAX_PENDING_CONTROL // 12 + 2
    assert "does not read" in str(failure(session.receive_data(PING_0 * with_limit, 0)))
    assert session.pending <= yamux.MAX_PENDING_CONTROL + 24


# ---- properties


def normalised(events: list[Event]) -> list[Event]:
    """Where a payload was cut means nothing: neighbours of one stream become one."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, DataReceived) and result:
            last = result[-1]
            if isinstance(last, DataReceived) and last.stream_id == event.stream_id:
                result[-1] = DataReceived(event.stream_id, last.data + event.data)
                continue
        result.append(event)
    return result


flags = st.integers(0, 15)
frames = st.one_of(
    st.builds(data, st.integers(0, 6), st.binary(max_size=40), flags),
    st.builds(lambda f, s, n: frame(1, f, s, n), flags, st.integers(0, 6), st.integers(0, 2**32 - 1)),
    st.builds(lambda f, n: frame(2, f, 0, n), flags, st.integers(0, 3)),
    st.builds(lambda n: frame(3, 0, 0, n), st.integers(0, 3)),
    st.binary(min_size=1, max_size=30),
)
wires = st.one_of(st.binary(max_size=200), st.lists(frames, max_size=20).map(b"".join))


def outcome(events: list[Event]) -> list[object]:
    """Comparable: errors by type and text."""
    return [(type(e.error), str(e.error)) if isinstance(e, SessionFailed) else e for e in normalised(events)]


@pytest.mark.spec("agent-api", 17)
@given(wires, st.lists(st.integers(1, 30), min_size=1), st.sampled_from(Role))
def test_any_chunking_gives_the_same_events(wire: bytes, sizes: list[int], role: Role) -> None:
    whole, cut = YamuxSession(role, 0), YamuxSession(role, 0)
    for session in (whole, cut):
        session.open_stream(0)
    expected = outcome(whole.receive_data(wire, 0))
    events: list[Event] = []
    at = 0
    for size in itertools.cycle(sizes):
        events += cut.receive_data(wire[at : at + size], 0)
        at += size
        if at >= len(wire):
            break
    assert outcome(events) == expected
    assert written(cut) == written(whole)
    assert sum(isinstance(event, SessionFailed) for event in events) <= 1
    assert (cut.error is not None) == any(isinstance(event, SessionFailed) for event in events)


@given(st.data())
def test_two_sessions_carry_every_byte_whatever_the_pace(draws: st.DataObject) -> None:
    """A model of both ends: bytes arrive whole, in order, and no end breaks a rule of the other."""
    ends = client(), server()
    sent: dict[tuple[int, int], bytes] = {}
    got: dict[tuple[int, int], bytes] = {}
    unread: dict[tuple[int, int], int] = {}
    known: list[int] = []

    def move(source: int) -> None:
        wire = written(ends[source])
        cut = draws.draw(st.integers(0, len(wire)))
        for part in (wire[:cut], wire[cut:]):
            for event in ends[1 - source].receive_data(part, 0):
                assert not isinstance(event, SessionFailed)
                if isinstance(event, DataReceived):
                    key = (1 - source, event.stream_id)
                    got[key] = got.get(key, b"") + event.data
                    unread[key] = unread.get(key, 0) + len(event.data)

    for _ in range(draws.draw(st.integers(1, 25))):
        end = draws.draw(st.integers(0, 1))
        action = draws.draw(st.sampled_from(["open", "send", "move", "read"]))
        if action == "open" and end == 0:
            known.append(ends[0].open_stream(0))
            move(0)
        elif action == "send" and known:
            stream = draws.draw(st.sampled_from(known))
            payload = draws.draw(st.binary(min_size=1, max_size=8)) * draws.draw(st.sampled_from([1, 9_000, 40_000]))
            taken = ends[end].send(stream, payload)
            key = (1 - end, stream)
            sent[key] = sent.get(key, b"") + payload[:taken]
        elif action == "move":
            move(end)
        elif action == "read" and known:
            key = (end, draws.draw(st.sampled_from(known)))
            ends[end].consume(key[1], unread.pop(key, 0))
    for _ in range(2):
        move(0)
        move(1)
    assert {key: value for key, value in sent.items() if value} == got
