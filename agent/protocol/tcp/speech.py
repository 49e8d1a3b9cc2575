"""What a connection says: the packets that it sends, and when it has to say something."""

from __future__ import annotations

from agent.protocol.tcp.endpoints import Endpoints
from agent.protocol.tcp.limits import Counters, State
from agent.protocol.tcp.receiver import Receiver
from agent.protocol.tcp.segment import ACK, MASK, SYN, ack_options, build, syn_options
from agent.protocol.tcp.sender import Sender
from agent.protocol.tcp.shared import Shared

MAX_FIELD = 65535
"""The largest window without a scale."""

_PENDING = State.PENDING
_SYN_SENT = State.SYN_SENT
_SYN_RECEIVED = State.SYN_RECEIVED
_FIN_WAIT_2 = State.FIN_WAIT_2
_CLOSED = State.CLOSED


class Speech(Endpoints):
    """All that is known of one connection, and the packets that say it."""

    __slots__ = (
        "_ack_due",
        "_acked_to",
        "_close_noted",
        "_duplicate_acks",
        "_fin_at",
        "_heard",
        "_irs",
        "_iss",
        "_keepalives",
        "_lingers",
        "_orphan",
        "_probe_due",
        "_readable",
        "_receive_scale",
        "_receiver",
        "_sack",
        "_scaled",
        "_send_scale",
        "_sender",
        "_shared",
        "_stamp_offset",
        "_stamp_recent",
        "_stamped",
        "_syn_due",
        "_syn_sent_at",
        "_syn_tries",
        "_until",
        "counted",
        "counters",
        "queued",
        "state",
        "timers",
        "touched",
    )

    def __init__(self, shared: Shared, key: bytes, flow: bytes, state: State, now: float) -> None:
        """Made by the stack. `key`: addresses and ports as in an incoming packet, `flow` as in an outgoing one."""
        super().__init__(key, flow)
        self._shared = shared
        self.state = state
        self.counters = Counters()
        self._iss, self._stamp_offset = shared.identify(key, now)
        self._irs = 0
        self._receiver = Receiver(shared.limits.receive_buffer)
        self._sender = Sender(flow, self._iss, shared.mss, shared.limits, self.counters)
        self._stamped = self._sack = self._scaled = True
        self._stamp_recent: int | None = None
        self._receive_scale = self._send_scale = 0
        self._acked_to = 0
        self._fin_at: int | None = None
        self._ack_due = self._probe_due = self._syn_due = False
        self._duplicate_acks = 0
        self._readable = self._close_noted = False
        self._orphan = False
        self._lingers: int | None = None
        self._until: float | None = None
        """When the present state ends by itself: handshake, FIN-WAIT-2, the patience with a closed connection."""
        self._syn_tries = 0
        self._syn_sent_at = now
        self._heard = now
        self._keepalives = 0
        self.queued = False
        """Kept by the stack: whether this is in `Shared.ready`."""
        self.touched = False
        """Kept by the stack: whether a segment came in this batch."""
        self.timers: list[float] = []
        """Kept by the stack: the timers that run for this, the earliest last."""
        self.counted = False
        """Whether this is one of `Shared.pending`."""

    @property
    def _own_scale(self) -> int:
        """The scale with which the whole buffer can be announced, and no more: small windows stay exact."""
        return max(0, self._shared.limits.receive_buffer.bit_length() - 16)

    def _stamp(self, now: float) -> int:
        return (int(now * 1000) + self._stamp_offset) & MASK

    @property
    def _first_window(self) -> int:
        """What a SYN announces; it is never scaled."""
        return min(self._receiver.first_window, MAX_FIELD)

    def _window_field(self) -> int:
        return min(self._receiver.window(self._shared.mss) >> self._receive_scale, MAX_FIELD)

    def _pure_ack(self, now: float, back: int = 0) -> bytes:
        """An acknowledgement without data, `back` positions behind what was sent last."""
        receiver = self._receiver
        blocks = []
        if self._sack and receiver.has_report:
            blocks = [(start + self._irs, end + self._irs) for start, end in receiver.blocks()]
        stamp = self._stamp(now) if self._stamped else None
        options = ack_options(stamp, self._stamp_recent or 0, blocks)
        self._acked_to = receiver.nxt
        self.counters.segments_sent += 1
        seq = (self._iss + self._sender.nxt - back) & MASK
        return build(self._flow, seq, (self._irs + receiver.nxt) & MASK, ACK, self._window_field(), options)

    def _syn_packet(self, now: float) -> bytes:
        answering = self.state is _SYN_RECEIVED
        options = syn_options(
            self._shared.mss,
            self._own_scale if not answering or self._scaled else None,
            self._sack,
            self._stamp(now) if self._stamped else None,
            (self._stamp_recent or 0) if answering else 0,
        )
        flags, ack = (SYN | ACK, (self._irs + 1) & MASK) if answering else (SYN, 0)
        return build(self._flow, self._iss, ack, flags, self._first_window, options)

    def emit(self, out: list[bytes], limit: int, now: float) -> bool:
        """Append up to `limit` packets (one more for an acknowledgement). True if there may be more at once."""
        state = self.state
        if state is _CLOSED or state is _PENDING:
            return False
        if state is _SYN_SENT or state is _SYN_RECEIVED:
            if self._syn_due:
                self._syn_due = False
                if not self._syn_tries:
                    self._syn_sent_at = now
                self._syn_tries += 1
                if self._until is None or self._until <= now:
                    self._until = now + 2.0 ** (self._syn_tries - 1)
                self._acked_to = 1
                self.counters.segments_sent += 1
                out.append(self._syn_packet(now))
            if state is _SYN_SENT or not self._ack_due:
                return False
        before = len(out)
        more = False
        if state is not _SYN_RECEIVED:
            receiver = self._receiver
            ack = (self._irs + receiver.nxt) & MASK
            stamp = self._stamp(now) if self._stamped else 0
            more = self._sender.emit(out, limit, now, ack, self._window_field(), stamp, self._stamp_recent or 0)
            if len(out) > before:
                self.counters.segments_sent += len(out) - before
                self._acked_to = receiver.nxt
                if not receiver.has_report:
                    self._ack_due = False
            if self._probe_due or self._sender.zero_window_probe:
                # One position back, so that the peer must answer (RFC 9293 §3.8.4, §3.8.6.1).
                self._probe_due = self._sender.zero_window_probe = self._ack_due = False
                out.append(self._pure_ack(now, back=1))
        if self._ack_due:
            self._ack_due = False
            out.append(self._pure_ack(now))
        if self._orphan:
            self._watch_orphan(now)
        return more

    def _watch_orphan(self, now: float) -> None:
        """A connection that the owner has closed must come to an end."""
        limits = self._shared.limits
        if self.state is _FIN_WAIT_2:
            if self._lingers != -1:
                self._lingers = -1
                self._until = now + limits.fin_wait_2
        elif self._lingers != self._sender.una:
            self._lingers = self._sender.una
            self._until = now + limits.linger

    def deadline(self, now: float) -> float | None:
        """When `handle_timeout` is due."""
        due = self._until
        if self.state is _PENDING or self.state is _SYN_SENT or self.state is _SYN_RECEIVED or self.state is _CLOSED:
            return due
        sender = self._sender
        for other in (sender.deadline(), sender.pace_deadline(now), self._keepalive_at()):
            if other is not None and (due is None or other < due):
                due = other
        return due

    def _keepalive_at(self) -> float | None:
        limits = self._shared.limits
        if not limits.keepalive_idle or self._sender.pending:
            return None
        return self._heard + limits.keepalive_idle + self._keepalives * limits.keepalive_interval
