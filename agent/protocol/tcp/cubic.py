"""How much may be in flight: CUBIC (RFC 9438) with the slow start of HyStart++ (RFC 9406). Sizes are bytes."""

from __future__ import annotations

_C = 0.4
_BETA = 0.7
_ALPHA = 3 * (1 - _BETA) / (1 + _BETA)
INITIAL_SEGMENTS = 10
MIN_SEGMENTS = 2

_MIN_RTT_RISE, _MAX_RTT_RISE = 0.004, 0.016
_ROUND_SAMPLES = 8
_CAUTIOUS_DIVISOR = 4
_CAUTIOUS_ROUNDS = 5

_NEAR_RTT = 0.004
"""Seconds. On a way that is no longer than this, no router drops what is too much: it waits in the sockets of programs
that have no processor left, with everything else that goes the same way."""
_NEAR_WAIT = 0.003
"""So long it may wait there."""
_NEAR_WINDOW = 256 * 1024
"""What may always be in flight on a near way: less would leave a program idle that gets its turn late."""

Snapshot = tuple[float, float, float, float]


class Cubic:
    """The congestion window of one direction. It grows by what is acknowledged and shrinks once per loss episode."""

    __slots__ = (
        "_base_rtt",
        "_cautious",
        "_epoch",
        "_k",
        "_last_min",
        "_limit",
        "_mss",
        "_prior",
        "_reno",
        "_round_end",
        "_round_min",
        "_samples",
        "_w_max",
        "cwnd",
        "ssthresh",
    )

    def __init__(self, mss: int, limit: int) -> None:
        """`limit`: more than this is never in flight, so the window does not grow beyond it."""
        self._mss = mss
        self._limit = float(limit)
        self.cwnd = float(INITIAL_SEGMENTS * mss)
        self.ssthresh = float("inf")
        self._w_max = 0.0
        self._prior = 0.0
        self._reno = 0.0
        self._k = 0.0
        self._epoch = -1.0
        self._cautious = 0
        self._base_rtt = 0.0
        self._round_end = 0
        self._round_min = self._last_min = float("inf")
        self._samples = 0

    @property
    def slow_start(self) -> bool:
        """Whether the window doubles with every round trip."""
        return self.cwnd < self.ssthresh

    def on_ack(self, acked: int, una: int, nxt: int, rtt: float, least_rtt: float, now: float) -> None:
        """`acked` new bytes arrived while the window was the limit; `rtt` is the smoothed round trip time, `least_rtt`
        the shortest there was."""
        if least_rtt < _NEAR_RTT and rtt > least_rtt + _NEAR_WAIT and self.cwnd > _NEAR_WINDOW:
            if una >= self._round_end:
                self._round_end = nxt
                self._fit(least_rtt + _NEAR_WAIT, rtt)
            return
        if self.cwnd < self.ssthresh:
            self.cwnd += acked / _CAUTIOUS_DIVISOR if self._cautious else acked
            if una >= self._round_end:
                self._next_round(nxt)
        else:
            self._avoid(acked, rtt, now)
        self.cwnd = min(self.cwnd, self._limit)

    def _fit(self, wanted: float, rtt: float) -> None:
        """Shrink to what would have brought a round trip of `wanted` seconds instead of `rtt`."""
        self.cwnd = self.ssthresh = max(self.cwnd * max(wanted / rtt, _BETA), float(_NEAR_WINDOW))
        self._w_max = self.cwnd
        self._epoch = -1.0
        self._cautious = 0

    def on_rtt(self, rtt: float) -> None:
        """A sample of the round trip time: slow start ends when it rises, which is before packets are dropped."""
        self._round_min = min(self._round_min, rtt)
        self._samples += 1
        if self.cwnd >= self.ssthresh or self._samples < _ROUND_SAMPLES or self._last_min == float("inf"):
            return
        if self._cautious:
            if self._round_min < self._base_rtt:
                self._cautious = 0
        elif self._round_min >= self._last_min + min(max(self._last_min / 8, _MIN_RTT_RISE), _MAX_RTT_RISE):
            self._base_rtt = self._round_min
            self._cautious = 1

    def _next_round(self, nxt: int) -> None:
        self._round_end = nxt
        self._last_min, self._round_min, self._samples = self._round_min, float("inf"), 0
        if self._cautious:
            self._cautious += 1
            if self._cautious > _CAUTIOUS_ROUNDS:
                self.ssthresh = self.cwnd

    def _avoid(self, acked: int, rtt: float, now: float) -> None:
        mss = self._mss
        if self._epoch < 0:
            self._epoch = now
            if self._w_max <= self.cwnd:
                self._w_max = self.cwnd
                self._k = 0.0
            else:
                self._k = ((self._w_max - self.cwnd) / mss / _C) ** (1 / 3)
            self._reno = self.cwnd
        elapsed = now - self._epoch
        target = self._w_max + _C * (elapsed + rtt - self._k) ** 3 * mss
        target = min(max(target, self.cwnd), 1.5 * self.cwnd)
        growth = (target - self.cwnd) * acked / self.cwnd
        self._reno += (_ALPHA if self._reno < self._prior else 1.0) * mss * acked / self.cwnd
        if self._w_max + _C * (elapsed - self._k) ** 3 * mss < self._reno:
            self.cwnd = max(self.cwnd, self._reno)
        else:
            self.cwnd += growth

    def on_loss(self) -> None:
        """A loss episode begins."""
        cwnd = self.cwnd
        self._prior = cwnd
        # Fast convergence: a window that shrinks twice in a row leaves room for a newcomer.
        self._w_max = cwnd * (1 + _BETA) / 2 if cwnd < self._w_max else cwnd
        self.cwnd = self.ssthresh = max(cwnd * _BETA, float(MIN_SEGMENTS * self._mss))
        self._epoch = -1.0
        self._cautious = 0

    def on_timeout(self, again: bool) -> None:
        """The retransmission timer ran out: begin again with one segment. `again`: in the same loss episode."""
        if not again:
            self.on_loss()
        self.cwnd = float(self._mss)

    def after_idle(self) -> None:
        """Nothing was sent for longer than the retransmission timeout: what was known of the path is old."""
        self.ssthresh = max(self.ssthresh, 0.75 * self.cwnd)
        self.cwnd = min(self.cwnd, float(INITIAL_SEGMENTS * self._mss))
        self._epoch = -1.0

    def snapshot(self) -> Snapshot:
        """What `restore` needs when a loss turns out to have been none."""
        return self.cwnd, self.ssthresh, self._w_max, self._prior

    def restore(self, before: Snapshot) -> None:
        """Take the last reduction back."""
        cwnd, self.ssthresh, self._w_max, self._prior = before
        self.cwnd = max(self.cwnd, cwnd)
        self._epoch = -1.0
