"""The sending half: what the owner wrote, and when to send what of it.

`Connection` decides what the state of the connection allows; this decides how the stream gets across, and `Flight`
knows what has become of what was sent.
"""

from __future__ import annotations

import struct

from agent.protocol.tcp.flight import Flight
from agent.protocol.tcp.rack import Segment
from agent.protocol.tcp.segment import FIN, MASK, PSH, TIMESTAMP_MARK, TIMESTAMPS, head_of, ones_sum

_PLAIN = struct.Struct(">44sIIHHHH")
_STAMPED = struct.Struct(">44sIIHHHH12s")
_PLAIN_ACK, _STAMPED_ACK = 0x5010, 0x8010
"""The length of the header in words, and ACK."""

_PACED_RTT = 0.004
"""Below this round trip time batches are small enough to go out as they are."""
_PACE_QUANTUM = 0.001
"""Whoever has to wait for its pace waits at least so long, and then sends in one go what is due by then: each batch
costs both ends a pass through everything."""
_PACE_BURST = 0.005
_PACE_SEGMENTS = 16
"""What a late timer has missed is made up for, up to this much time or this many segments."""


class Sender(Flight):
    """The bytes that the owner wrote, until the peer has acknowledged them."""

    __slots__ = ()

    # What the owner does.

    @property
    def free(self) -> int:
        """Bytes that `write` would take now."""
        return max(0, self._limits.send_buffer - self._buffer.size - (self.nxt - self.una))

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take bytes as far as there is room; how many were taken."""
        size = min(len(data), self.free)
        if size < len(data):
            self._blocked = True
        if size:
            self._buffer.write(data, size)
        return size

    def backlog(self) -> int:
        """Bytes that were written and that may not be sent now; what only waits for its pace may."""
        room = min(self.edge - self.nxt, int(self.cubic.cwnd) - self._pipe)
        return max(0, self._buffer.size - max(0, room))

    def await_backlog(self, most: int) -> None:
        """`take_writable` is to tell when `backlog` is no larger than `most`."""
        self._backlog_awaited = most

    def await_drained(self) -> None:
        """`take_writable` is to tell when the peer has acknowledged everything."""
        self._awaited = True

    def take_writable(self) -> bool:
        """Whether a write that found no room may be tried again, or everything that was awaited is acknowledged; True
        once."""
        if self._awaited and self.free >= self._limits.send_buffer:
            self._awaited = self._blocked = False
            return True
        if self._backlog_awaited is not None and self.backlog() <= self._backlog_awaited:
            self._backlog_awaited = None
            return True
        if self._blocked and self.free >= self._limits.send_buffer // 8:
            self._blocked = False
            return True
        return False

    @property
    def pending(self) -> bool:
        """Whether anything is unsent or unacknowledged."""
        return self._buffer.size > 0 or self.nxt > self.una or (self.fin_wanted and not self.fin_sent)

    @property
    def fin_acked(self) -> bool:
        """Whether the peer has everything and our FIN."""
        return self.fin_sent and self.una == self.nxt

    def clear(self) -> None:
        """Forget what was written; the connection has ended."""
        self._buffer.clear()
        self._queue.clear()
        self._flight.clear()
        self._lost.clear()

    # What goes out.

    def emit(self, out: list[bytes], limit: int, now: float, ack: int, window: int, stamp: int, echo: int) -> bool:
        """Append up to `limit` packets. True if there may be more at once; `ack`, `window` … as on the wire."""
        if not self._queue and self._buffer.size and self._last_sent and now - self._last_sent > self.trip.rto:
            self.cubic.after_idle()
            self.trip.forget_minimum()
        base, tail = self._full_sum + ack + window, b""
        if self._stamped:
            tail = TIMESTAMPS.pack(TIMESTAMP_MARK, stamp, echo)
            base += TIMESTAMP_MARK + stamp + echo
        rate = 0.0
        if self.trip.smoothed > _PACED_RTT:
            rate = (2.0 if self.cubic.slow_start else 1.2) * self.cubic.cwnd / self.trip.smoothed
            self._pace_at = max(self._pace_at, now - max(_PACE_BURST, _PACE_SEGMENTS * self.mss / rate))
            if now < self._held_until and not self._probe:
                self._arm(now)
                return False
        count = self._full_segments(limit, now, rate)
        if count:
            self._emit_full(out, count, now, base, ack, window, stamp, tail)
            if rate:
                self._pace_at += count * self.mss / rate
        more = True
        for _ in range(limit - count):
            if rate and self._pace_at > now and not self._probe:
                self._held_until = self._pace_at + _PACE_QUANTUM
                more = False
                break
            segment = self._next()
            if segment is None:
                more = False
                break
            segment.sent_at = self._last_sent = now
            segment.stamp = stamp
            if segment.retransmissions:
                if self._undo_stamp is None:
                    self._undo_stamp = stamp
                if segment.end == self._probe_end:
                    self._probe_stamp = stamp
            out.append(self._pack(segment, base, ack, window, tail))
            if rate:
                self._pace_at += (segment.end - segment.start) / rate
        self._arm(now)
        return more

    def _full_segments(self, limit: int, now: float, rate: float) -> int:
        """How many new segments of full size may go at once, with more to send after them; `limit` at most."""
        if self._lost or self._probe or not self._stamped:
            return 0
        room = min(self._buffer.size - 1, self.edge - self.nxt, int(self.cubic.cwnd) - self._pipe)
        if rate:
            # Each one that begins before the pace's time may go.
            room = min(room, int((now - self._pace_at) * rate) + self.mss if self._pace_at <= now else 0)
        return max(0, min(room // self.mss, limit))

    def _emit_full(
        self, out: list[bytes], count: int, now: float, base: int, ack: int, window: int, stamp: int, tail: bytes
    ) -> None:
        """What `_next` and `_pack` do, for a run of new segments that differ only in their place: bulk is made here."""
        mss, head, iss, take, pack = self.mss, self._full_head, self._iss, self._buffer.take, _STAMPED.pack
        base += _STAMPED_ACK
        if not self._queue:
            self._rto_at = None
        self._pto_at = None
        segments = []
        for start in range(self.nxt, self.nxt + count * mss, mss):
            payload = take(mss)
            segments.append(Segment(start, start + mss, payload, sent_at=now, stamp=stamp))
            seq = (iss + start) & MASK
            checksum = -(base + seq + ones_sum(payload)) % 65535
            out.append(pack(head, seq, ack, _STAMPED_ACK, window, checksum, 0, tail) + payload)
        self._queue += segments
        self._flight += segments
        self.nxt += count * mss
        self._pipe += count * mss
        self._peak = max(self._peak, self._pipe)
        self._counters.bytes_sent += count * mss
        self._last_sent = now

    def _next(self) -> Segment | None:
        """The segment to send next, counted as sent; None if nothing may go."""
        cwnd = self.cubic.cwnd
        while self._lost:
            segment = self._lost[0]
            size = segment.end - segment.start
            if segment.acked or not segment.lost:
                self._lost.popleft()
                continue
            if self._pipe and self._pipe + size > cwnd:
                return None
            self._lost.popleft()
            return self._again(segment)
        size = min(self.mss, self._buffer.size)
        room = self.edge - self.nxt
        if room < size:
            # A part of a segment only if the peer's buffer is that small, or if asked for an answer.
            if room <= 0 or (room < self._max_window // 2 and not self._probe):
                return self._tail()
            size = room
        if not size:
            if self.fin_wanted and not self.fin_sent and not self._buffer.size:
                self._probe = False
                self.fin_sent = True
                return self._new(Segment(self.nxt, self.nxt + 1, b"", fin=True))
            return self._tail()
        if self._pipe and self._pipe + size > cwnd and not self._probe:
            return None
        return self._new(Segment(self.nxt, self.nxt + size, self._buffer.take(size)))

    def _new(self, segment: Segment) -> Segment:
        if self._probe:
            self._probe = False
            self._probe_end = segment.end
        if not self._queue:
            self._rto_at = None
        self._pto_at = None
        size = segment.end - segment.start
        self.nxt += size
        self._pipe += size
        self._peak = max(self._peak, self._pipe)
        self._queue.append(segment)
        self._flight.append(segment)
        self._counters.bytes_sent += len(segment.payload)
        return segment

    def _again(self, segment: Segment) -> Segment:
        if segment is self._queue[0]:
            self._rto_at = None
        segment.lost = False
        segment.retransmissions += 1
        self._pipe += segment.end - segment.start
        self._peak = max(self._peak, self._pipe)
        self._flight.append(segment)
        counters = self._counters
        counters.retransmissions += 1
        counters.most_retransmissions = max(counters.most_retransmissions, segment.retransmissions)
        return segment

    def _tail(self) -> Segment | None:
        """For a probe with nothing new to send: the last segment with data that is out once more.

        A FIN by itself only if there is nothing else: peers need not report one that comes early, and then the answer
        tells nothing.
        """
        if not self._probe:
            return None
        self._probe = False
        out = [segment for segment in self._queue if not segment.acked and not segment.lost]
        segment = next((segment for segment in reversed(out) if segment.payload), out[-1] if out else None)
        if segment is None:
            self._probe_end = self.nxt  # nothing to ask with: what remains is the retransmission timer
            return None
        self._flight.remove(segment)
        self._pipe -= segment.end - segment.start
        self._counters.probes += 1
        self._probe_end = segment.end
        return self._again(segment)

    def _pack(self, segment: Segment, base: int, ack: int, window: int, tail: bytes) -> bytes:
        payload = segment.payload
        size = len(payload)
        flags = _STAMPED_ACK if tail else _PLAIN_ACK
        if size == self.mss:
            head = self._full_head
        else:
            head, total = head_of(self._flow, size + (32 if tail else 20))
            base += total - self._full_sum
        if segment.fin:
            flags |= FIN
        elif not self._buffer.size:
            flags |= PSH
        seq = (self._iss + segment.start) & MASK
        checksum = -(base + seq + flags + ones_sum(payload)) % 65535
        if tail:
            return _STAMPED.pack(head, seq, ack, flags, window, checksum, 0, tail) + payload
        return _PLAIN.pack(head, seq, ack, flags, window, checksum, 0) + payload
