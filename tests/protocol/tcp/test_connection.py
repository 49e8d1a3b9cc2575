"""What single segments mean: opening, closing, resets, challenges, limits."""

from __future__ import annotations

import pytest

from agent.protocol.tcp import (
    Closed,
    Connected,
    Connection,
    ConnectionClosedTcpError,
    ConnectionRefusedTcpError,
    ConnectionResetTcpError,
    ConnectionTimeoutTcpError,
    Incoming,
    Limits,
    NoFreePortError,
    PeerClosed,
    Readable,
    State,
    TcpStack,
    Writable,
)
from agent.protocol.tcp.segment import ACK, FIN, MASK, RST, SYN, build, syn_options
from tests.protocol.tcp.link import PORT, A, B, Network, Rough, steady


def flags_of(packet: bytes) -> int:
    return packet[53]


def seq_of(packet: bytes) -> int:
    return int.from_bytes(packet[44:48], "big")


def ack_of(packet: bytes) -> int:
    return int.from_bytes(packet[48:52], "big")


def flow(port: int = 5000, to: int = PORT) -> bytes:
    """From A to B."""
    return A + B + port.to_bytes(2, "big") + to.to_bytes(2, "big")


def syn(port: int = 5000, seq: int = 100) -> bytes:
    return build(flow(port), seq, 0, SYN, 65535, syn_options(1220, 7, True, None, 0))


class Peer:
    """A peer made by hand, without timestamps: sequence numbers count from 100 here."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.stack = TcpStack([B], limits=limits)
        self.now = 10.0
        (event,) = self.stack.receive([syn()], self.now)
        assert isinstance(event, Incoming)
        self.connection: Connection = event.connection
        self.connection.accept()
        (answer,) = self.sent()
        assert flags_of(answer) == SYN | ACK
        self.ack = (seq_of(answer) + 1) & MASK

    def sent(self) -> list[bytes]:
        return self.stack.packets_to_send(self.now)

    def say(
        self, flags: int = ACK, seq: int = 101, ack: int | None = None, payload: bytes = b"", window: int = 65535
    ) -> list[bytes]:
        """Send a segment and see what comes back."""
        packet = build(flow(), seq & MASK, self.ack if ack is None else ack & MASK, flags, window, payload=payload)
        self.events = self.stack.receive([packet], self.now)
        return self.sent()

    def establish(self) -> Peer:
        assert self.say() == []
        assert self.events == [Connected(self.connection)]
        return self


def test_both_ways_and_an_orderly_end() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    assert a.write(b"hello") == 5
    net.run(1)
    assert bytes(net.b.received) == b"hello"
    assert Readable(b) in net.b.events
    b.write(b"bye")
    b.shutdown_write()
    net.run(1)
    assert bytes(net.a.received) == b"bye"
    assert net.a.saw(PeerClosed)
    assert a.at_eof
    assert (a.state, b.state) == (State.CLOSE_WAIT, State.FIN_WAIT_2)
    assert a.write(b"still here") == 10
    net.run(1)
    assert bytes(net.b.received) == b"hellostill here"
    a.shutdown_write()
    net.run(1)
    assert net.over
    assert net.a.closed == Closed(a, None)
    assert net.b.closed == Closed(b, None)
    assert a.rtt == pytest.approx(0.02, rel=0.5)
    with pytest.raises(ConnectionClosedTcpError):
        a.write(b"x")


def test_the_answer_to_a_syn_waits_for_accept() -> None:
    stack = TcpStack([B])
    (event,) = stack.receive([syn()], 0.0)
    assert isinstance(event, Incoming)
    assert stack.receive([syn(), syn()], 1.0) == []
    assert stack.packets_to_send(1.0) == []
    event.connection.accept()
    (answer,) = stack.packets_to_send(1.0)
    assert flags_of(answer) == SYN | ACK
    assert ack_of(answer) == 101


def test_a_peer_that_gives_up_while_the_dial_goes_on() -> None:
    stack = TcpStack([B])
    (event,) = stack.receive([syn()], 0.0)
    assert isinstance(event, Incoming)
    (closed,) = stack.receive([build(flow(), 101, 0, RST, 0)], 1.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, ConnectionResetTcpError)
    event.connection.accept()
    event.connection.refuse()
    assert stack.packets_to_send(1.0) == []
    assert stack.pending == 0


def test_pending_connections_are_bounded() -> None:
    stack = TcpStack([B], limits=Limits(pending=10))
    events = stack.receive([syn(port) for port in range(1, 31)], 0.0)
    assert len(events) == stack.pending == len(stack.connections) == 10
    assert stack.counters.backlog_full == 20
    assert stack.packets_to_send(0.0) == []
    assert isinstance(events[0], Incoming)
    events[0].connection.refuse()
    assert len(stack.receive([syn(99)], 0.0)) == 1
    assert stack.next_timeout() == 120.0
    assert len(stack.handle_timeout(121.0)) == 10
    assert stack.connections == []
    assert stack.pending == 0


def test_one_peer_that_floods_keeps_nobody_else_out() -> None:
    stack = TcpStack([B], limits=Limits(pending_of_peer=10, connections_of_peer=20))
    other = A[:15] + bytes((A[15] ^ 1,))
    assert len(stack.receive([syn(port) for port in range(1, 31)], 0.0)) == 10
    assert stack.counters.backlog_full == 20
    (event,) = stack.receive([build(other + B + bytes((0, 1, 0, 80)), 1, 0, SYN, 1000)], 0.0)
    assert isinstance(event, Incoming)
    for connection in stack.connections:
        connection.abort()
    assert (stack.pending, stack.connections, stack._shared.pending_of, stack._shared.connections_of) == (0, [], {}, {})


def test_established_connections_of_one_peer_are_bounded() -> None:
    stack = TcpStack([B], limits=Limits(pending_of_peer=10, connections_of_peer=20))
    for port in range(1, 31):
        for event in stack.receive([syn(port)], 0.0):
            assert isinstance(event, Incoming)
            event.connection.accept()
            (answer,) = stack.packets_to_send(0.0)
            seq, ack = seq_of(answer) + 1, 101
            flow = event.connection.key
            stack.receive([build(flow, ack, seq, ACK, 1000)], 0.0)
    assert (len(stack.connections), stack.pending, stack.counters.backlog_full) == (20, 0, 10)


def test_syn_answers_are_repeated_and_then_given_up() -> None:
    stack = TcpStack([B])
    (event,) = stack.receive([syn()], 0.0)
    assert isinstance(event, Incoming)
    event.connection.accept()
    times = []
    now = 0.0
    while stack.connections:
        if any(flags_of(each) == SYN | ACK for each in stack.packets_to_send(now)):
            times.append(now)
        due = stack.next_timeout()
        assert due is not None
        now = due
        stack.handle_timeout(now)
    assert times == [0, 1, 3, 7, 15, 31, 63]
    assert stack.pending == 0


def test_a_port_that_refuses() -> None:
    net = Network(steady(0.01), steady(0.01))
    net.b.accepting = False
    net.connect(shut=False)
    net.run(0.5)
    assert net.b.connection is not None
    net.b.connection.refuse()
    net.run(1)
    assert net.a.closed is not None
    assert isinstance(net.a.closed.error, ConnectionRefusedTcpError)


def test_no_answer_to_a_syn() -> None:
    net = Network(lambda packet: [])
    net.connect(shut=False)
    net.run(300)
    assert net.packets == 7
    assert net.a.closed is not None
    assert isinstance(net.a.closed.error, ConnectionTimeoutTcpError)
    assert net.now - 1000 >= 127


@pytest.mark.spec("tailnet", 54)
@pytest.mark.parametrize(
    ("flags", "answer"), [(ACK, (RST, 7, 0)), (FIN, (RST | ACK, 0, 101)), (FIN | ACK, (RST, 7, 0)), (RST, None)]
)
def test_segments_without_a_connection(flags: int, answer: tuple[int, int, int] | None) -> None:
    stack = TcpStack([B])
    assert stack.receive([build(flow(), 100, 7, flags, 0)], 0.0) == []
    sent = [(flags_of(each), seq_of(each), ack_of(each)) for each in stack.packets_to_send(0.0)]
    assert sent == ([] if answer is None else [answer])


def test_packets_that_are_not_for_us() -> None:
    stack = TcpStack([A])
    packet = syn()
    bad = packet[:-1] + bytes([packet[-1] ^ 1])
    short = packet[:60]
    fragment = packet[:6] + b"\x2c" + packet[7:]
    assert stack.receive([packet, bad, short, fragment, b"", b"\x40" + packet[1:]], 0.0) == []
    counters = stack.counters
    assert (counters.foreign, counters.bad_checksum, counters.malformed) == (1, 1, 4)
    assert stack.packets_to_send(0.0) == []


def test_only_the_exact_reset_counts() -> None:
    peer = Peer().establish()
    (challenge,) = peer.say(RST, seq=102)
    assert (flags_of(challenge), ack_of(challenge)) == (ACK, 101)
    assert peer.connection.state is State.ESTABLISHED
    assert peer.say(RST, seq=101 + 5_000_000) == []
    assert peer.say(RST, seq=101) == []
    assert peer.connection.ended
    (closed,) = peer.events
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, ConnectionResetTcpError)


def test_a_syn_in_the_middle_is_challenged() -> None:
    peer = Peer().establish()
    (challenge,) = peer.say(SYN, seq=5000)
    assert (flags_of(challenge), ack_of(challenge)) == (ACK, 101)
    assert peer.connection.state is State.ESTABLISHED


def test_challenges_are_limited() -> None:
    peer = Peer(Limits(challenges=3)).establish()
    assert sum(len(peer.say(SYN, seq=5000)) for _ in range(10)) == 3
    peer.now += 1
    assert sum(len(peer.say(ack=peer.ack + 77)) for _ in range(10)) == 3
    peer.now += 1
    assert sum(len(peer.say(seq=50)) for _ in range(10)) == 3


def test_what_was_never_sent_cannot_be_acknowledged() -> None:
    peer = Peer()
    (reset,) = peer.say(ack=peer.ack + 1)
    assert (flags_of(reset), seq_of(reset)) == (RST, peer.ack + 1)
    assert peer.connection.state is State.SYN_RECEIVED
    peer.establish()
    (challenge,) = peer.say(ack=peer.ack + 1, payload=b"no")
    assert flags_of(challenge) == ACK
    assert peer.connection.readable == 0
    (challenge,) = peer.say(ack=peer.ack - 10_000_000, payload=b"no")
    assert peer.connection.readable == 0


def test_every_segment_ahead_of_a_gap_is_answered_at_once() -> None:
    peer = Peer().establish()
    packets = [build(flow(), 201 + 100 * at, peer.ack, ACK, 65535, payload=bytes(100)) for at in range(3)]
    peer.stack.receive(packets, peer.now)
    answers = peer.sent()
    assert [ack_of(each) for each in answers[:3]] == [101] * 3
    (answer,) = peer.say(payload=bytes(100))
    assert ack_of(answer) == 501
    assert peer.events == [Readable(peer.connection)]


def test_one_acknowledgement_for_a_batch() -> None:
    peer = Peer().establish()
    packets = [build(flow(), 101 + 100 * at, peer.ack, ACK, 65535, payload=bytes(100)) for at in range(30)]
    assert peer.stack.receive(packets, peer.now) == [Readable(peer.connection)]
    (answer,) = peer.sent()
    assert ack_of(answer) == 3101


def test_data_carries_the_acknowledgement() -> None:
    peer = Peer().establish()
    packet = build(flow(), 101, peer.ack, ACK, 65535, payload=b"ping")
    peer.stack.receive([packet], peer.now)
    peer.connection.write(b"pong")
    (answer,) = peer.sent()
    assert answer[60:] == b"pong"
    assert ack_of(answer) == 105


def test_both_close_at_once() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    a.shutdown_write()
    b.shutdown_write()
    net.run(5)
    assert net.over
    assert net.complete
    assert net.a.closed == Closed(a, None)
    assert net.b.closed == Closed(b, None)


def test_both_open_at_once() -> None:
    a, b = TcpStack([A]), TcpStack([B])
    first = a.connect(A, B, 1, 0.0)
    second = b.connect(B, A, first.local_port, 0.0)
    # Ports are drawn at random, so the second connection is turned to the first one's.
    table = b._shared.table
    del table[second.key]
    second.key = first._flow
    second._flow = second._sender._flow = first.key
    table[second.key] = second
    packets = {0: a.packets_to_send(0.0), 1: b.packets_to_send(0.0)}
    seen = []
    for _ in range(6):
        seen += a.receive(packets[1], 0.0) + b.receive(packets[0], 0.0)
        packets = {0: a.packets_to_send(0.0), 1: b.packets_to_send(0.0)}
    assert first.state is second.state is State.ESTABLISHED
    assert seen.count(Connected(first)) == seen.count(Connected(second)) == 1
    assert packets == {0: [], 1: []}


def finished() -> Peer:
    """In TIME_WAIT."""
    peer = Peer().establish()
    peer.connection.shutdown_write()
    (fin,) = peer.sent()
    assert flags_of(fin) & FIN
    peer.ack += 1
    assert peer.say() == []
    assert peer.connection.state is State.FIN_WAIT_2
    (answer,) = peer.say(FIN | ACK)
    assert (flags_of(answer), ack_of(answer)) == (ACK, 102)
    assert peer.events == [PeerClosed(peer.connection), Closed(peer.connection, None)]
    return peer


def test_time_wait() -> None:
    peer = finished()
    peer.now += 50
    (answer,) = peer.say(FIN | ACK)
    assert (flags_of(answer), seq_of(answer), ack_of(answer)) == (ACK, peer.ack, 102)
    assert peer.say(RST, seq=102) == [], "RFC 1337"
    assert peer.say(seq=102) == []
    peer.now += 50
    assert len(peer.say(FIN | ACK)) == 1, "it began anew with the last FIN"
    peer.now += 61
    (reset,) = peer.say(FIN | ACK)
    assert flags_of(reset) == RST


def test_a_new_connection_ends_time_wait() -> None:
    peer = finished()
    (answer,) = peer.say(SYN, seq=50)
    assert flags_of(answer) == ACK, "an old SYN"
    peer.say(SYN, seq=5000)
    (event,) = peer.events
    assert isinstance(event, Incoming)


def test_time_waits_are_bounded() -> None:
    net = Network(limits=Limits(time_waits=5))
    for _ in range(12):
        net.a.events.clear()
        net.b.events.clear()
        net.connect(b"x")
        net.run(10)
        assert net.over
    waits = net.a.stack._shared.time_waits.keys() | net.b.stack._shared.time_waits.keys()
    assert 5 <= len(waits) <= 10
    net.a.stack.handle_timeout(net.now + 100)
    net.b.stack.handle_timeout(net.now + 100)
    assert not net.a.stack._shared.time_waits
    assert not net.b.stack._shared.time_waits


def test_a_closed_connection_waits_for_the_peer_only_so_long() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, _ = net.establish()
    a.write(b"last words")
    a.close()
    net.run(1)
    assert bytes(net.b.received) == b"last words"
    assert a.state is State.FIN_WAIT_2
    net.run(70)
    assert a.ended
    assert net.a.closed == Closed(a, None)


def test_a_half_closed_connection_waits_as_long_as_it_takes() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    a.shutdown_write()
    net.run(3600)
    assert a.state is State.FIN_WAIT_2
    b.write(b"at last")
    b.shutdown_write()
    net.run(5)
    assert bytes(net.a.received) == b"at last"
    assert net.over


def test_data_for_a_closed_connection_is_answered_by_reset() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    a.close()
    net.run(1)
    b.write(b"anyone?")
    net.run(1)
    assert net.b.closed is not None
    assert isinstance(net.b.closed.error, ConnectionResetTcpError)
    assert net.over


def test_closing_with_unread_bytes_resets() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    net.b.reading = False
    a.write(b"unread")
    net.run(1)
    b.close()
    assert b.state is State.CLOSED
    net.run(1)
    assert net.a.closed is not None
    assert isinstance(net.a.closed.error, ConnectionResetTcpError)


def test_a_closed_connection_whose_peer_never_reads_ends() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, _ = net.establish()
    net.b.reading = False
    while a.write(bytes(1 << 20)):
        pass
    a.close()
    net.run(300)
    assert a.state is State.CLOSED
    assert net.a.stack.connections == []


def test_abort() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    b.write(b"unheard")
    a.abort()
    assert a.state is State.CLOSED
    assert a.read(100) == b""
    net.run(1)
    assert net.b.closed is not None
    assert isinstance(net.b.closed.error, ConnectionResetTcpError)
    assert net.a.closed is None
    a.abort()
    a.close()
    a.shutdown_write()
    assert net.over


def test_what_came_before_a_reset_can_still_be_read() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    net.b.reading = False
    a.write(b"farewell")
    net.run(1)
    a.abort()
    net.run(1)
    assert b.state is State.CLOSED
    assert not b.at_eof
    assert b.read(100) == b"farewell"
    assert b.at_eof


def test_keep_alive_finds_a_dead_peer() -> None:
    alive = True
    net = Network(
        lambda packet: [(0.01, packet)] if alive else [],
        steady(0.01),
        limits=Limits(keepalive_idle=100),
        limits_b=Limits(),
    )
    a, _ = net.establish()
    net.run(1000)
    assert a.state is State.ESTABLISHED
    assert a.counters.segments_received > 9
    alive = False
    net.run(1000)
    assert net.a.closed is not None
    assert isinstance(net.a.closed.error, ConnectionTimeoutTcpError)


def test_without_keep_alive_silence_costs_nothing() -> None:
    net = Network(steady(0.01), steady(0.01), limits=Limits(keepalive_idle=0))
    a, _ = net.establish()
    before = net.packets
    net.run(100_000)
    assert net.packets == before
    assert a.state is State.ESTABLISHED
    assert net.a.stack.next_timeout() is None


def test_writable_comes_when_there_is_room() -> None:
    net = Network(steady(0.01), steady(0.01), limits=Limits(send_buffer=100_000))
    a, _ = net.establish()
    assert a.write(bytes(150_000)) == 100_000
    assert a.write(b"x") == 0
    assert a.writable == 0
    net.run(1)
    assert net.a.events.count(Writable(a)) == 1
    assert a.writable == 100_000


def test_an_old_timestamp_is_dropped() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, b = net.establish()
    net.a.keep = True
    a.write(b"one")
    net.run(1)
    old = net.a.sent[0]
    before = b.counters.bytes_received
    net.now += 1
    a.write(b"two")
    net.run(1)
    assert bytes(net.b.received) == b"onetwo"
    net.b.stack.receive([old], net.now)
    assert net.b.stack.packets_to_send(net.now) != []
    assert b.counters.bytes_received == before + 3


def test_mutable_buffers_are_copied() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, _ = net.establish()
    data = bytearray(b"a" * 5000)
    assert a.write(data) == 5000
    data[:] = b"b" * 5000
    assert a.write(memoryview(data)[:10]) == 10
    data.clear()
    net.run(1)
    assert bytes(net.b.received) == b"a" * 5000 + b"b" * 10


def test_ports_run_out() -> None:
    stack = TcpStack([A], random=lambda size: bytes(size))
    connection = stack.connect(A, B, 1, 0.0)
    stack._shared.table.update({A + B[:0] + key.to_bytes(20, "big"): connection for key in range(3)})
    ports = {stack.connect(A, B, 1, 0.0).local_port for _ in range(5)}
    assert len(ports) == 5
    for port in range(16_384, 65_536):
        stack._shared.table[B + A + (1).to_bytes(2, "big") + port.to_bytes(2, "big")] = connection
    with pytest.raises(NoFreePortError):
        stack.connect(A, B, 1, 0.0)


def test_many_short_connections_leave_nothing_behind() -> None:
    net = Network(steady(0.001), steady(0.001))
    for _ in range(400):
        net.a.events.clear()
        net.b.events.clear()
        net.connect(b"x", b"y")
        net.run(10)
        assert net.over
    for stack in (net.a.stack, net.b.stack):
        assert len(stack._timers) <= 300
        assert not stack._shared.ready
        assert not stack._shared.table
        assert not stack._shared.events


def test_whoever_awaits_it_is_told_once_when_all_is_acknowledged() -> None:
    net = Network(steady(0.01), steady(0.01))
    a, _ = net.establish()
    assert a.write(b"x" * 5000) == 5000
    a.await_drained()
    net.flush()
    assert not net.a.events.count(Writable(a))
    net.run(seconds=5)
    assert a.unsent == 0
    assert net.a.events.count(Writable(a)) == 1
    a.write(b"again")
    net.flush()
    net.run(seconds=5)
    assert net.a.events.count(Writable(a)) == 1


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("window", [4096, 20_000])
def test_an_allowance_that_is_lost_on_its_way_stops_nothing(loss: float, window: int) -> None:
    data = bytes(200_000)
    net = Network(Rough(delay=0.005, loss=loss, seed=1), Rough(delay=0.005, loss=loss, seed=2), Limits(retries=40))
    reader = net.connect(b"", data, shut=False)
    net.b.shut_when_sent = True
    reader.allow(window)
    began = net.now
    while len(net.a.received) < len(data):
        received = len(net.a.received)
        if not net.step(net.now + 0.01):
            net.now += 0.01
        if len(net.a.received) > received:
            assert len(net.a.received) <= received + window
            reader.allow(len(net.a.received) + window)
        assert net.now < began + 60
    assert loss or net.now < began + 2
