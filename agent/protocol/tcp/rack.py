"""When a segment counts as lost: by time, as in RFC 8985 (RACK-TLP). Times are seconds."""

from __future__ import annotations

from agent.protocol.tcp.segment import MASK

MIN_RTO = 0.2
MAX_RTO = 120.0
INITIAL_RTO = 1.0
DUPLICATE_THRESHOLD = 3
_MIN_PROBE = 0.01
_MAX_REORDER_STEPS = 20
_SLACK = 1e-6
"""Sums of floats are not exact: a wait shorter than this is over."""


class Segment:
    """A segment that was sent and is kept until the peer has it."""

    __slots__ = ("acked", "end", "fin", "lost", "payload", "retransmissions", "sent_at", "stamp", "start")

    def __init__(
        self,
        start: int,
        end: int,
        payload: bytes | memoryview,
        fin: bool = False,
        sent_at: float = 0.0,
        stamp: int = 0,
    ) -> None:
        self.start = start
        self.end = end
        self.payload = payload
        self.fin = fin
        self.sent_at = sent_at
        self.stamp = stamp
        """The timestamp option of its last transmission."""
        self.acked = False
        self.lost = False
        self.retransmissions = 0


class RoundTrip:
    """Smoothed round trip time and retransmission timeout (RFC 6298)."""

    __slots__ = ("minimum", "rto", "smoothed", "variation")

    def __init__(self) -> None:
        self.smoothed = 0.0
        self.variation = 0.0
        self.minimum = float("inf")
        self.rto = INITIAL_RTO

    def sample(self, rtt: float) -> None:
        """A measured round trip."""
        if self.smoothed:
            self.variation += (abs(self.smoothed - rtt) - self.variation) / 4
            self.smoothed += (rtt - self.smoothed) / 8
        else:
            self.smoothed = max(rtt, 1e-6)
            self.variation = rtt / 2
        self.minimum = min(self.minimum, rtt)
        # The minimum is added and not only a floor: a lost segment takes a round trip to be noticed and one to arrive.
        self.rto = min(self.smoothed + max(4 * self.variation, MIN_RTO), MAX_RTO)

    def forget_minimum(self) -> None:
        """The way is another one, or it was not used for long: its shortest round trip is to be measured anew."""
        self.minimum = float("inf")

    def probe_timeout(self, alone: bool) -> float:
        """How long to wait for an acknowledgement before a probe is sent; `alone`: one segment is out."""
        if not self.smoothed:
            return INITIAL_RTO
        wait = max(2 * self.smoothed, _MIN_PROBE)
        # The peer may hold back the acknowledgement of a single segment.
        return min(wait + MIN_RTO / 2 if alone else wait, self.rto)


class Rack:
    """The latest sent segment that has arrived, and how much reordering to put up with."""

    __slots__ = ("_highest", "_steps", "end", "reordering", "rtt", "sacked", "sent_at")

    def __init__(self) -> None:
        self.sent_at = -1.0
        self.end = 0
        self.rtt = 0.0
        self.reordering = False
        self.sacked = 0
        """Segments that arrived beyond the cumulative acknowledgement."""
        self._highest = 0
        self._steps = 1

    def delivered(self, segment: Segment, now: float, echo: int | None, minimum: float) -> None:
        """A segment arrived. If it was sent twice and the first one may be meant, it tells nothing."""
        rtt = now - segment.sent_at
        if segment.retransmissions:
            if echo is not None:
                if (echo - segment.stamp) & MASK > MASK >> 1:
                    return
            elif rtt < minimum:
                return
        elif segment.end < self._highest:
            self.reordering = True
        self._highest = max(self._highest, segment.end)
        if segment.sent_at > self.sent_at or (segment.sent_at == self.sent_at and segment.end > self.end):
            self.sent_at = segment.sent_at
            self.end = segment.end
            self.rtt = rtt

    def duplicate(self) -> None:
        """The peer got something twice: be more patient."""
        self._steps = min(self._steps + 1, _MAX_REORDER_STEPS)
        self.reordering = True

    def patience(self, trip: RoundTrip, in_recovery: bool) -> float:
        """How much later than the latest arrival a segment may still come."""
        if not self.reordering and (in_recovery or self.sacked >= DUPLICATE_THRESHOLD):
            return 0.0
        return min(self._steps * trip.minimum / 4, trip.smoothed)

    def overdue(self, segment: Segment, now: float, patience: float) -> float | None:
        """Seconds until a segment counts as lost, 0 if it does now, None if nothing sent later has arrived."""
        if segment.sent_at > self.sent_at or (segment.sent_at == self.sent_at and segment.end >= self.end):
            return None
        wait = segment.sent_at + self.rtt + patience - now
        return wait if wait > _SLACK else 0.0
