"""What is in flight: which of it has arrived, which is lost, and what the timers are for.

Positions count bytes of our stream from its SYN, which is 0; the first byte is 1. They never wrap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from operator import attrgetter

from agent.protocol.tcp.buffer import SendBuffer
from agent.protocol.tcp.cubic import Cubic, Snapshot
from agent.protocol.tcp.limits import Counters, Limits
from agent.protocol.tcp.rack import DUPLICATE_THRESHOLD, MAX_RTO, Rack, RoundTrip, Segment
from agent.protocol.tcp.scoreboard import Scoreboard
from agent.protocol.tcp.segment import MASK, head_of

_end = attrgetter("end")
_MAX_PERSIST = 60.0


class Flight:
    """The bytes that the owner wrote, from the first transmission until the peer has acknowledged them."""

    __slots__ = (
        "_acked",
        "_awaited",
        "_backlog_awaited",
        "_backoff",
        "_blocked",
        "_board",
        "_buffer",
        "_counters",
        "_duplicates",
        "_first_failure",
        "_flight",
        "_flow",
        "_full_head",
        "_full_sum",
        "_held_until",
        "_iss",
        "_last_sent",
        "_limits",
        "_lost",
        "_max_window",
        "_newest",
        "_pace_at",
        "_peak",
        "_pipe",
        "_probe",
        "_probe_end",
        "_probe_stamp",
        "_pto_at",
        "_queue",
        "_recovery",
        "_reorder_at",
        "_retries",
        "_rto_at",
        "_stamped",
        "_undo",
        "_undo_end",
        "_undo_stamp",
        "_wl",
        "cubic",
        "edge",
        "fin_sent",
        "fin_wanted",
        "mss",
        "nxt",
        "rack",
        "trip",
        "una",
        "zero_window_probe",
    )

    def __init__(self, flow: bytes, iss: int, mss: int, limits: Limits, counters: Counters) -> None:
        """`flow`: addresses and ports as in `segment.build`; `mss` until the peer has told its own."""
        self._flow = flow
        self._iss = iss
        self._limits = limits
        self._counters = counters
        self._stamped = False
        self.mss = mss
        self._full_head, self._full_sum = head_of(flow, mss + 20)
        self._buffer = SendBuffer()
        self._blocked = False
        self._awaited = False
        self._backlog_awaited: int | None = None
        self.una = 1
        """The first position that is not acknowledged."""
        self.nxt = 1
        """The next position to send."""
        self.edge = 1
        """The right edge of the peer's window."""
        self._wl = (0, 0)
        self._max_window = 0
        self.fin_wanted = False
        self.fin_sent = False
        self.cubic = Cubic(mss, 2 * limits.send_buffer)
        self.rack = Rack()
        self.trip = RoundTrip()
        self._queue: list[Segment] = []
        """Sent and not acknowledged cumulatively, in order of position."""
        self._flight: deque[Segment] = deque()
        """The same in order of transmission, without those marked as lost; arrived ones are dropped late."""
        self._lost: deque[Segment] = deque()
        """To be sent again; arrived ones are dropped late."""
        self._pipe = 0
        """Bytes that are neither known to have arrived nor counted as lost."""
        self._recovery: int | None = None
        """While a loss episode lasts: the position whose acknowledgement ends it."""
        self._board = Scoreboard()
        self._acked = 0
        self._newest: Segment | None = None
        self._peak = 0
        """The most that `_pipe` has been since the last acknowledgement."""
        self._duplicates = 0
        self._undo: Snapshot | None = None
        self._undo_end = 0
        self._undo_stamp: int | None = None
        self._rto_at: float | None = None
        self._pto_at: float | None = None
        self._reorder_at: float | None = None
        self._pace_at = 0.0
        self._held_until = 0.0
        self._backoff = 0
        self._retries = 0
        self._first_failure = 0.0
        self._probe = False
        self._probe_end: int | None = None
        self._probe_stamp: int | None = None
        self._last_sent = 0.0
        self.zero_window_probe = False

    def start(self, mss: int, stamped: bool, window: int) -> None:
        """The handshake told: payload bytes of a full segment, whether segments carry timestamps, the peer's window."""
        self.mss = mss
        self._stamped = stamped
        self._full_head, self._full_sum = head_of(self._flow, mss + (32 if stamped else 20))
        self.cubic = Cubic(mss, 2 * self._limits.send_buffer)
        self.edge = self.una + window
        self._max_window = window

    @property
    def in_flight(self) -> int:
        """Bytes sent and not acknowledged cumulatively."""
        return self.nxt - self.una

    @property
    def outdated(self) -> int:
        """An acknowledgement before this position is older than anything that can still be on its way."""
        return self.una - max(self._max_window, self.mss)

    # What arrives.

    def update_window(self, seq: int, ack: int, edge: int) -> None:
        """The window of an acceptable segment; an older segment does not take a newer one's word back."""
        if (seq, ack) >= self._wl:
            self._wl = (seq, ack)
            window = edge - ack
            self._max_window = max(self._max_window, window)
            if self.edge != edge:
                self.edge = edge
                self._duplicates = 0
                if window and not self._queue:
                    self._rto_at = None
                    self._backoff = 0

    def acknowledge(self, ack: int, blocks: tuple[tuple[int, int], ...], echo: int | None, now: float) -> None:
        """A segment acknowledged everything before `ack`, and `blocks` on the wire beyond it."""
        if ack > self.una:
            self._advance(ack, echo, now)
        elif self.edge <= self.una:
            # The peer is there and has no room: that is not silence.
            self._retries = 0
        if blocks:
            self._select(blocks, now)

    def duplicate(self) -> None:
        """An empty segment repeated the last acknowledgement, from a peer without selective ones (RFC 6582)."""
        self._duplicates += 1
        if self._duplicates == DUPLICATE_THRESHOLD and self._queue and self._recovery is None:
            self._lose_first()
            self._begin_recovery(self._queue[0])

    def _lose_first(self) -> None:
        first = self._queue[0]
        if not first.lost:
            self._flight.remove(first)
            self._mark_lost(first)

    def _advance(self, ack: int, echo: int | None, now: float) -> None:
        rack, minimum = self.rack, self.trip.minimum
        count = 0
        undo = self._undo
        newest = self._newest
        for segment in self._queue:
            if segment.end > ack:
                break
            count += 1
            if segment.acked:
                rack.sacked -= 1
                continue
            segment.acked = True
            size = segment.end - segment.start
            self._acked += size
            if not segment.lost:
                self._pipe -= size
            if segment.retransmissions:
                rack.delivered(segment, now, echo, minimum)
            elif newest is None or segment.sent_at >= newest.sent_at:
                newest = segment
                if rack.sacked:
                    rack.delivered(segment, now, echo, minimum)
        if newest is not self._newest and newest is not None:
            rack.delivered(newest, now, echo, minimum)
            self._newest = newest
        del self._queue[:count]
        if self._queue and self._queue[0].start < ack:
            self._cut(self._queue[0], ack)
        self.una = ack
        self._retries = self._backoff = 0
        self._rto_at = self._pto_at = None
        if self._probe_end is not None and ack >= self._probe_end:
            self._probe_answered(echo)
        if undo is not None and echo is not None and ack >= self._undo_end:
            self._undo = None
            if self._undo_stamp is None or (echo - self._undo_stamp) & MASK > MASK >> 1:
                self._take_back(undo)
        if self._recovery is not None:
            if ack >= self._recovery:
                self._recovery = None
            elif self._duplicates >= DUPLICATE_THRESHOLD and self._queue:
                # Without selective acknowledgements each partial one names the next hole.
                self._lose_first()
        if self._recovery is None:
            self._duplicates = 0
        if self._board.runs:
            self._board.forget(ack)

    def _cut(self, segment: Segment, ack: int) -> None:
        """The peer took a part of a segment."""
        taken = ack - segment.start
        segment.payload = segment.payload[taken:]
        segment.start = ack
        if not segment.acked and not segment.lost:
            self._pipe -= taken

    def _select(self, blocks: tuple[tuple[int, int], ...], now: float) -> None:
        queue, rack, minimum = self._queue, self.rack, self.trip.minimum
        base = self._iss + self.una
        for left, right in blocks:
            start = self.una + (((left - base + 0x80000000) & MASK) - 0x80000000)
            end = start + ((right - left) & MASK)
            if start < self.una:
                if end <= self.una:
                    rack.duplicate()
                continue
            if end > self.nxt:
                continue
            run_start, run_end, fresh = self._board.add(start, end)
            for new_start, new_end in fresh:
                for index in range(bisect_left(queue, new_start + 1, key=_end), len(queue)):
                    segment = queue[index]
                    if segment.start >= new_end or segment.end > run_end:
                        break
                    if segment.acked or segment.start < run_start:
                        continue
                    self._selected(segment, now, minimum)

    def _selected(self, segment: Segment, now: float, minimum: float) -> None:
        """A segment has arrived beyond the cumulative acknowledgement."""
        rack = self.rack
        segment.acked = True
        rack.sacked += 1
        size = segment.end - segment.start
        self._acked += size
        if not segment.lost:
            self._pipe -= size
        # Its acknowledgement echoes the last segment in order (RFC 7323 §4.3), and so tells nothing of this one.
        rack.delivered(segment, now, None, minimum)
        if not segment.retransmissions and (self._newest is None or segment.sent_at >= self._newest.sent_at):
            self._newest = segment

    def _probe_answered(self, echo: int | None) -> None:
        """The tail that a probe repeated has arrived. If the repetition was needed, there was a loss."""
        needed = self._probe_stamp is not None and echo is not None and (echo - self._probe_stamp) & MASK <= MASK >> 1
        if needed and self._recovery is None:
            self.cubic.on_loss()
        self._probe_end = self._probe_stamp = None

    def _take_back(self, before: Snapshot) -> None:
        """What was sent again had only been late (RFC 4015): nothing is lost and the window was right."""
        self.cubic.restore(before)
        self._counters.spurious += 1
        for segment in reversed(self._lost):
            if segment.lost and not segment.acked:
                segment.lost = False
                self._pipe += segment.end - segment.start
                self._flight.appendleft(segment)
        self._lost.clear()
        self._recovery = None
        self.rack.reordering = True

    def settle(self, now: float) -> None:
        """A batch of segments has been taken in: find losses, grow the window, set the timers."""
        newest = self._newest
        if newest is not None:
            self._newest = None
            rtt = max(now - newest.sent_at, 0.0)
            self.trip.sample(rtt)
            self.cubic.on_rtt(rtt)
        if self._acked:
            cubic = self.cubic
            if cubic.slow_start:
                if 2 * self._peak >= cubic.cwnd:
                    cubic.on_ack(self._acked, self.una, self.nxt, self.trip.smoothed, self.trip.minimum, now)
            elif self._recovery is None and self._peak + 2 * self.mss >= cubic.cwnd:
                cubic.on_ack(self._acked, self.una, self.nxt, self.trip.smoothed, self.trip.minimum, now)
            self._acked = 0
            self._peak = self._pipe
        flight = self._flight
        while flight and flight[0].acked:
            flight.popleft()
        if self.rack.sacked or self._recovery is not None or (flight and flight[0].sent_at < self.rack.sent_at):
            self._detect(now)
        else:
            self._reorder_at = None
        self._arm(now)

    def _detect(self, now: float) -> None:
        """Everything sent well before something that has arrived is lost."""
        self._reorder_at = None
        flight, rack = self._flight, self.rack
        patience = rack.patience(self.trip, self._recovery is not None)
        while flight:
            segment = flight[0]
            if segment.acked:
                flight.popleft()
                continue
            overdue = rack.overdue(segment, now, patience)
            if overdue is None:
                break
            if overdue > 0:
                self._reorder_at = now + overdue
                break
            flight.popleft()
            self._mark_lost(segment)
            if self._recovery is None:
                self._begin_recovery(segment)

    def _mark_lost(self, segment: Segment) -> None:
        segment.lost = True
        self._pipe -= segment.end - segment.start
        self._lost.append(segment)

    def _begin_recovery(self, first: Segment) -> None:
        self._counters.recoveries += 1
        self._recovery = self.nxt
        self._remember(first)
        self.cubic.on_loss()

    def _remember(self, first: Segment) -> None:
        """Keep what it takes to undo a reduction, should `first` only have been late."""
        self._undo = self.cubic.snapshot() if self._stamped else None
        self._undo_end = first.end
        self._undo_stamp = None

    # Timers.

    def _arm(self, now: float) -> None:
        if self._queue:
            if self._rto_at is None:
                self._rto_at = now + min(self.trip.rto * 2**self._backoff, MAX_RTO)
            if self._recovery is not None or self._probe_end is not None or self._backoff:
                self._pto_at = None
            elif self._pto_at is None:
                self._pto_at = now + self.trip.probe_timeout(len(self._queue) == 1)
        else:
            self._pto_at = self._reorder_at = None
            if not self._buffer.size and not (self.fin_wanted and not self.fin_sent):
                self._rto_at = None
            elif self._rto_at is None and self._window_blocked():
                self._rto_at = now + min(self.trip.rto * 2**self._backoff, _MAX_PERSIST)

    def _window_blocked(self) -> bool:
        """Whether it is the peer's window that keeps the next segment back."""
        room = self.edge - self.nxt
        return room <= 0 or (room < min(self.mss, self._buffer.size) and room < self._max_window // 2)

    def deadline(self) -> float | None:
        """When `handle_timeout` is due."""
        due = self._rto_at
        if self._pto_at is not None and (due is None or self._pto_at < due):
            due = self._pto_at
        if self._reorder_at is not None and (due is None or self._reorder_at < due):
            due = self._reorder_at
        return due

    def pace_deadline(self, now: float) -> float | None:
        """When more may be sent, if it is the pace that keeps it back."""
        if self._held_until > now and (self._lost or self._sendable()):
            return self._held_until
        return None

    def _sendable(self) -> bool:
        return self._buffer.size > 0 and self.edge > self.nxt and self._pipe + self.mss <= self.cubic.cwnd

    def handle_timeout(self, now: float) -> bool:
        """Do what is due. False if the peer has not answered for so long that the connection is lost."""
        if self._reorder_at is not None and now >= self._reorder_at:
            self._detect(now)
        if self._pto_at is not None and now >= self._pto_at:
            self._pto_at = None
            self._probe = True
            self._rto_at = now + self.trip.rto
        elif self._rto_at is not None and now >= self._rto_at:
            self._rto_at = None
            if not self._may_retry(now):
                return False
            if self._queue:
                self._timed_out()
            else:
                self._persist()
            self._backoff = min(self._backoff + 1, 10)
            self._arm(now)
        return True

    def _may_retry(self, now: float) -> bool:
        if not self._retries:
            self._first_failure = now
        self._retries += 1
        return self._retries <= self._limits.retries or now - self._first_failure < self._limits.patience

    def _timed_out(self) -> None:
        """No answer to anything: all that is out counts as lost."""
        self._counters.timeouts += 1
        queue = self._queue
        if queue[0].acked:
            # The peer has dropped what it had acknowledged selectively (RFC 2018 §8).
            for segment in queue:
                segment.acked = False
            self.rack.sacked = 0
        self._board.clear()
        self._lost = deque([segment for segment in queue if not segment.acked])
        for segment in self._lost:
            segment.lost = True
        self._flight.clear()
        self._pipe = 0
        self._reorder_at = None
        self._probe_end = self._probe_stamp = None
        if not self._backoff:
            self._remember(queue[0])
        self.cubic.on_timeout(again=self._recovery is not None)
        self._recovery = self.nxt
        self._pace_at = self._held_until = 0.0

    def _persist(self) -> None:
        """Ask the peer for its window, or use the little of it that there is."""
        if self.edge > self.nxt:
            self._probe = True
        else:
            self.zero_window_probe = True
