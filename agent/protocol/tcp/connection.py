"""One TCP connection: its state and what the segments mean for it (RFC 9293, with RFC 5961, 7323, 2018)."""

from __future__ import annotations

import sys

from agent.protocol.tcp.limits import (
    Closed,
    Connected,
    ConnectionClosedTcpError,
    ConnectionRefusedTcpError,
    ConnectionResetTcpError,
    ConnectionTimeoutTcpError,
    PeerClosed,
    Readable,
    State,
    TcpError,
    Writable,
)
from agent.protocol.tcp.segment import (
    ACK,
    FIN,
    MASK,
    MIN_PACKET,
    RST,
    SYN,
    TIMESTAMP_MARK,
    TIMESTAMPS,
    build,
    parse_options,
)
from agent.protocol.tcp.shared import TimeWait
from agent.protocol.tcp.speech import MAX_FIELD, Speech

DEFAULT_PEER_MSS = 1220
MIN_MSS = 48
_STAMP_BYTES = 12
_STAMPED_AT = MIN_PACKET + _STAMP_BYTES
"""Where the payload begins in a packet with timestamps and no other option."""
_SPECIAL = FIN | SYN | RST | ACK
_HALF = 0x80000000
_DUPLICATE_ACKS = 3
"""Acknowledgements of its own for so many segments ahead of a gap in one batch; selective ones say the rest."""

_PENDING = State.PENDING
_SYN_SENT = State.SYN_SENT
_SYN_RECEIVED = State.SYN_RECEIVED
_ESTABLISHED = State.ESTABLISHED
_FIN_WAIT_1 = State.FIN_WAIT_1
_FIN_WAIT_2 = State.FIN_WAIT_2
_CLOSE_WAIT = State.CLOSE_WAIT
_CLOSING = State.CLOSING
_LAST_ACK = State.LAST_ACK
_CLOSED = State.CLOSED


class Connection(Speech):
    """What the owner reads from and writes to. After any call but `read` of nothing, the stack may want to send."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Connection {self.describe()} {self.state.value}>"

    @property
    def rtt(self) -> float | None:
        """The smoothed round trip time in seconds, None before the first measurement."""
        return self._sender.trip.smoothed or None

    @property
    def readable(self) -> int:
        """Bytes that `read` could give now."""
        return self._receiver.buffered

    @property
    def writable(self) -> int:
        """Bytes that `write` would take now."""
        return self._sender.free

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the peer has not acknowledged."""
        return self._shared.limits.send_buffer - self._sender.free

    def backlog(self) -> int:
        """Bytes that were written and that cannot be sent now: the peer's window or the network's are full."""
        return self._sender.backlog()

    def await_backlog(self, most: int) -> None:
        """Let `Writable` tell when `backlog` has fallen to `most`."""
        self._sender.await_backlog(most)

    def way_changed(self) -> None:
        """Packets go another way from now on: what was measured of the old one says nothing about it."""
        self._sender.trip.forget_minimum()
        self._receiver.forget_way()

    def await_drained(self) -> None:
        """Let `Writable` tell when `unsent` has become 0."""
        self._sender.await_drained()

    @property
    def ended(self) -> bool:
        """Whether nothing will be sent or received any more."""
        return self.state is _CLOSED

    @property
    def at_eof(self) -> bool:
        """Whether everything that the peer will ever send has been read."""
        ended = self._fin_at is not None and self._receiver.nxt > self._fin_at
        return (ended or self.state is _CLOSED) and not self._receiver.buffered

    # What the owner does.

    def accept(self) -> None:
        """Answer the SYN of an `Incoming`; without effect if the peer has given up meanwhile."""
        if self.state is _PENDING:
            self.state = _SYN_RECEIVED
            self._until = None
            self._syn_due = True
            self._schedule()

    def refuse(self) -> None:
        """Answer the SYN of an `Incoming` with RST; no `Closed` follows."""
        if self.state is _PENDING:
            self._shared.send_control(build(self._flow, 0, (self._irs + 1) & MASK, RST | ACK, 0))
            self._leave()

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, empty if there are none now; what is taken opens the peer's window."""
        receiver = self._receiver
        data = receiver.read(limit)
        if data and self._fin_at is None and receiver.wants_update(self._shared.mss) and self.state is not _CLOSED:
            self._ack_due = True
            self._schedule()
        return data

    def allow(self, total: int) -> None:
        """Let the peer send so many bytes in all and no more, even if there were room for them; a smaller number than
        before is ignored. Where it is never called, only the room counts. The first call comes before anything is sent.
        """
        receiver = self._receiver
        if 1 + total > receiver.allowed or receiver.allowed == sys.maxsize:
            receiver.allowed = 1 + total
            if self.state is _ESTABLISHED and receiver.wants_update(self._shared.mss):
                self._ack_due = True
                self._schedule()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes to send; how many were taken. If not all were, `Writable` says when there is room again.

        Large `bytes` are kept, not copied; anything else is copied. ConnectionClosedTcpError after `shutdown_write`,
        `close` or the end.
        """
        if self.state is _CLOSED or self._sender.fin_wanted:
            raise ConnectionClosedTcpError(f"the connection {self.describe()} does not take data any more")
        taken = self._sender.write(data)
        if taken:
            self._schedule()
        return taken

    def shutdown_write(self) -> None:
        """Send FIN after what was written; the other direction stays open."""
        if self.state is _CLOSED or self._sender.fin_wanted:
            return
        self._sender.fin_wanted = True
        if self.state is _ESTABLISHED:
            self.state = _FIN_WAIT_1
        elif self.state is _CLOSE_WAIT:
            self.state = _LAST_ACK
        self._schedule()

    def close(self) -> None:
        """Send what was written and FIN; what the peer still sends is of no interest and answered by RST."""
        if self.state is _CLOSED or self._orphan:
            return
        early = self.state is _PENDING or self.state is _SYN_SENT
        if early or (self._receiver.buffered and self._fin_at is None):
            # The peer must learn that what it sent was not read (RFC 9293 §3.10.4, RFC 2525 §2.17).
            self.abort()
            return
        self._orphan = True
        self._receiver.discard()
        self.shutdown_write()
        self._schedule()

    def abort(self) -> None:
        """Send RST and forget everything; no `Closed` follows."""
        if self.state is _CLOSED:
            return
        if self.state is not _SYN_SENT:
            self._send_reset()
        self._leave()
        self._receiver.discard()

    # What arrives.

    def begin(self) -> None:
        """Send a SYN."""
        self._syn_due = True
        self._schedule()

    def open(self, seq: int, window: int, options: bytes, now: float) -> None:
        """A SYN asks for this connection."""
        self._irs = seq
        self.counted = True
        self._shared.begin_pending(self)
        self._until = now + self._shared.limits.pending_time
        self._negotiate(window, options)

    def _negotiate(self, window: int, text: bytes) -> None:
        options = parse_options(text)
        peer = DEFAULT_PEER_MSS if options.mss is None else max(options.mss, MIN_MSS)
        mss = min(peer, self._shared.mss)
        self._stamped = options.timestamp is not None
        self._stamp_recent = options.timestamp
        self._sack = options.sack_permitted
        if options.window_scale is not None:
            self._send_scale, self._receive_scale = options.window_scale, self._own_scale
        else:
            self._scaled = False
            self._send_scale = self._receive_scale = 0
            self._receiver.restrict(MAX_FIELD)
        self._receiver.edge = 1 + self._first_window
        self._sender.start(mss - _STAMP_BYTES if self._stamped else mss, self._stamped, window)

    def segment(
        self, seq: int, ack: int, flags: int, window: int, packet: bytes | memoryview, data_at: int, now: float
    ) -> None:
        """Take in a segment of this connection; its payload begins at `data_at` of `packet`."""
        self._heard = now
        self._keepalives = 0
        self.counters.segments_received += 1
        if data_at == _STAMPED_AT and self._take_expected(seq, ack, flags, window, packet):
            return
        state = self.state
        if state is _PENDING or state is _SYN_SENT:
            if state is _PENDING:
                self._pending_segment(seq, flags)
            else:
                self._syn_sent_segment(seq, ack, flags, window, bytes(packet[60:data_at]), now)
            return
        blocks: tuple[tuple[int, int], ...] = ()
        stamp: int | None = None
        echo: int | None = None
        if data_at >= 72:
            mark, stamp, echo = TIMESTAMPS.unpack_from(packet, 60)
            if mark != TIMESTAMP_MARK or data_at > 72:
                options = parse_options(packet[60:data_at])
                stamp, blocks = options.timestamp, options.blocks if self._sack else ()
                echo = options.echo if stamp is not None else None
        elif data_at > 60:
            blocks = parse_options(packet[60:data_at]).blocks if self._sack else ()
        if not self._stamped:
            stamp = echo = None
        receiver = self._receiver
        nxt = receiver.nxt
        start = nxt + (((seq - self._irs - nxt + _HALF) & MASK) - _HALF)
        size = len(packet) - data_at
        fin = flags & FIN
        end = start + size + fin
        if stamp is not None and self._stamp_recent is not None and (stamp - self._stamp_recent) & MASK >= _HALF:
            if not flags & RST:
                self._answer_unfit(size, now)
            return
        if state is _SYN_RECEIVED and flags & SYN and start == 0:
            if flags & ACK:
                self._ack_due = True
            else:
                self._syn_due = True
            return
        last = receiver.last_acceptable
        if end > start:
            fits = start <= last and end > nxt if last > nxt or not size else False
        else:
            fits = nxt <= start <= last
        if not fits:
            if flags & RST:
                return
            if size and end <= nxt:
                receiver.note_duplicate(start, end - fin)
            self._answer_unfit(size + fin, now)
            if last != nxt or start != nxt:
                return
            # No room: the acknowledgement counts all the same (RFC 9293 §3.10.7.4).
            size = fin = 0
        if flags & RST:
            if start == nxt:
                self._end(ConnectionResetTcpError(f"the peer reset the connection {self.describe()}"))
            else:
                self._challenge(now)
            return
        if flags & SYN:
            self._challenge(now)
            return
        if not flags & ACK:
            return
        sender = self._sender
        una = sender.una
        acked = una + (((ack - self._iss - una + _HALF) & MASK) - _HALF)
        if state is _SYN_RECEIVED:
            if acked != 1:
                self._shared.send_control(build(self._flow, ack, 0, RST, 0))
                return
            self._establish(now)
        elif acked > sender.nxt or acked < sender.outdated:
            self._challenge(now)
            return
        if stamp is not None and start <= self._acked_to:
            self._stamp_recent = stamp
        if acked >= una:
            edge = acked + (window << self._send_scale)
            if acked > una or blocks or edge != sender.edge:
                sender.update_window(start, acked, edge)
                sender.acknowledge(acked, blocks, echo, now)
                if sender.fin_sent and sender.fin_acked and self._fin_acked(now):
                    return
            elif not size and not fin and not self._sack:
                sender.duplicate()
        if size:
            self._take(start, bytes(packet[data_at:]), now)
        if fin and self.state is not _CLOSED and self._fin_at is None and end - 1 <= last:
            self._fin_at = end - 1
            self._ack_due = True
        if self._fin_at == receiver.nxt:
            self._peer_closed(now)

    def _take_expected(self, seq: int, ack: int, flags: int, window: int, packet: bytes | memoryview) -> bool:
        """Take the next bytes of the stream, if that is all that the segment says: most segments of a bulk transfer.

        What this returns False for goes the long way, which comes to the same for what this takes.
        """
        receiver, sender = self._receiver, self._sender
        nxt = receiver.nxt
        if (
            self.state is not _ESTABLISHED
            or seq != (self._irs + nxt) & MASK
            or flags & _SPECIAL != ACK
            or ack != (self._iss + sender.una) & MASK
            or sender.una + (window << self._send_scale) != sender.edge
        ):
            return False
        mark, stamp, _ = TIMESTAMPS.unpack_from(packet, MIN_PACKET)
        recent = self._stamp_recent
        if mark != TIMESTAMP_MARK or recent is None or (stamp - recent) & MASK >= _HALF:
            return False
        payload = bytes(packet[_STAMPED_AT:])
        if not receiver.extend(payload):
            return False
        if nxt <= self._acked_to:
            self._stamp_recent = stamp
        self.counters.bytes_received += len(payload)
        self._readable = self._ack_due = True
        return True

    def _pending_segment(self, seq: int, flags: int) -> None:
        """Before `accept` only a RST matters; the SYN comes again by itself."""
        if flags & RST and seq == (self._irs + 1) & MASK:
            self._end(ConnectionResetTcpError(f"the peer gave the connection {self.describe()} up"))

    def _syn_sent_segment(self, seq: int, ack: int, flags: int, window: int, options: bytes, now: float) -> None:
        if flags & ACK and ack != (self._iss + 1) & MASK:
            if not flags & RST:
                self._shared.send_control(build(self._flow, ack, 0, RST, 0))
            return
        if flags & RST:
            if flags & ACK:
                self._end(ConnectionRefusedTcpError(f"connection {self.describe()} was refused"))
            return
        if not flags & SYN:
            return
        self._irs = seq
        self._negotiate(window, options)
        if flags & ACK:
            self._establish(now)
            self._ack_due = True
        else:
            # Both sides opened at once.
            self.state = _SYN_RECEIVED
            self._syn_due = True

    def _establish(self, now: float) -> None:
        self._uncount()
        self._until = None
        if self._syn_tries == 1:
            self._sender.trip.sample(max(now - self._syn_sent_at, 0.0))
        self.state = _FIN_WAIT_1 if self._sender.fin_wanted else _ESTABLISHED
        self._shared.events.append(Connected(self))

    def _take(self, start: int, payload: bytes, now: float) -> None:
        """Bytes of the peer."""
        receiver = self._receiver
        if self._fin_at is not None and start + len(payload) > self._fin_at:
            payload = payload[: max(0, self._fin_at - start)]
        if self._orphan:
            self._send_reset()
            self._end(ConnectionResetTcpError(f"the peer sent data on the connection {self.describe()} closed here"))
            return
        before = receiver.nxt
        whole = receiver.receive(start, payload)
        moved = receiver.nxt - before
        if moved:
            self._readable = True
            self.counters.bytes_received += moved
        self._ack_due = True
        # At once, and for each, so that the peer notices a gap (RFC 5681 §4.2).
        if not whole and not moved and (not self._sack or self._duplicate_acks < _DUPLICATE_ACKS):
            self._duplicate_acks += 1
            self._shared.send_control(self._pure_ack(now))

    def _peer_closed(self, now: float) -> None:
        """The peer's FIN is next in order."""
        self._fin_at = self._receiver.nxt
        self._receiver.nxt += 1
        self._ack_due = True
        if self.state is _ESTABLISHED:
            self.state = _CLOSE_WAIT
        elif self.state is _FIN_WAIT_1:
            self.state = _CLOSING
        elif self.state is _FIN_WAIT_2:
            self._time_wait(now)
            return
        self._close_noted = True

    def _fin_acked(self, now: float) -> bool:
        """Everything of ours has arrived. True if that ends the connection."""
        if self.state is _FIN_WAIT_1:
            self.state = _FIN_WAIT_2
        elif self.state is _CLOSING:
            self._time_wait(now)
            return True
        elif self.state is _LAST_ACK:
            self._end(None)
            return True
        return False

    def _time_wait(self, now: float) -> None:
        self._close_noted = True
        shared = self._shared
        wait = TimeWait(
            self._flow,
            (self._iss + self._sender.nxt) & MASK,
            (self._irs + self._receiver.nxt) & MASK,
            self._window_field(),
            self._stamp_offset,
            self._stamp_recent if self._stamped else None,
            now + shared.limits.time_wait,
        )
        shared.send_control(self._pure_ack(now))
        self._end(None)
        shared.wait(self.key, wait)

    def _answer_unfit(self, size: int, now: float) -> None:
        """Answer a segment outside the window; empty ones not without end, or two confused peers would never stop."""
        if size or self._shared.may_challenge(now):
            self._ack_due = True

    def _challenge(self, now: float) -> None:
        """Let a peer that means it prove that it is the peer (RFC 5961)."""
        if self._shared.may_challenge(now):
            self._shared.send_control(self._pure_ack(now))

    def _send_reset(self) -> None:
        if self.state is _PENDING or self.state is _SYN_RECEIVED:
            packet = build(self._flow, (self._iss + 1) & MASK, (self._irs + 1) & MASK, RST | ACK, 0)
        else:
            seq = (self._iss + self._sender.nxt) & MASK
            packet = build(self._flow, seq, (self._irs + self._receiver.nxt) & MASK, RST | ACK, 0)
        self._shared.send_control(packet)

    def _uncount(self) -> None:
        if self.counted:
            self.counted = False
            self._shared.end_pending(self)

    def finish(self, now: float) -> None:
        """A batch has been taken in: tell the owner, and the sender."""
        self.touched = False
        self._duplicate_acks = 0
        if self.state is _CLOSED:
            return
        self._sender.settle(now)
        self._receiver.adapt(self._sender.trip.minimum, now)
        self._tell()
        if self._sender.take_writable():
            self._shared.events.append(Writable(self))
        if self._orphan:
            self._watch_orphan(now)

    def _tell(self) -> None:
        if self._readable:
            self._readable = False
            self._shared.events.append(Readable(self))
        if self._close_noted:
            self._close_noted = False
            self._shared.events.append(PeerClosed(self))

    def _end(self, error: TcpError | None) -> None:
        self._tell()
        self._leave()
        self._shared.events.append(Closed(self, error))

    def _leave(self) -> None:
        """Out of the table; what was received stays readable."""
        shared = self._shared
        self.state = _CLOSED
        self._uncount()
        self._until = None
        self._ack_due = self._syn_due = self._probe_due = False
        self._sender.clear()
        shared.leave(self)

    # What time brings.

    def _schedule(self) -> None:
        if not self.queued:
            self.queued = True
            self._shared.ready.append(self)

    def handle_timeout(self, now: float) -> None:
        """Do what is due."""
        if self.state is _CLOSED:
            return
        if self._until is not None and now >= self._until:
            self._state_timeout(now)
            return
        if self.state is _PENDING or self.state is _SYN_SENT or self.state is _SYN_RECEIVED:
            return
        if not self._sender.handle_timeout(now):
            self._give_up()
            return
        keepalive = self._keepalive_at()
        if keepalive is not None and now >= keepalive:
            if self._keepalives >= self._shared.limits.keepalive_probes:
                self._give_up()
                return
            self._keepalives += 1
            self._probe_due = True
        self._schedule()

    def _state_timeout(self, now: float) -> None:
        if self.state is _FIN_WAIT_2:
            self._end(None)
        elif self.state is _SYN_SENT or self.state is _SYN_RECEIVED:
            if self._syn_tries > self._shared.limits.syn_retries:
                self._give_up()
            else:
                self._syn_due = True
                self._schedule()
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self.state is not _SYN_SENT:
            self._send_reset()
        self._end(ConnectionTimeoutTcpError(f"the peer of the connection {self.describe()} does not answer"))
