"""Which modes a terminal is in after a stream of output, so that a replay can begin in the middle of it.

A tracker is no emulator: it has no screen. It knows what output changes for the output after it, and what is not
drawn: modes, colours, character sets, margins, title. What it does not know is where the cursor is and what stands on
the screen; the replay draws that.

It is fast because it looks only at what it must: plain text is passed over by one search for three bytes, and of the
colours between two other changes only those after the last reset are read.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_PENDING: Final = 4096
"""Bytes of an unfinished control string that are kept; the rest of a longer one is not replayed."""
MAX_TITLE: Final = 512

# Where something may change state. Text, cursor movement, erasing, and colours (they are looked at apart) are passed
# over at the speed of C: the pattern begins with a literal, so this is a search for one byte.
_CANDIDATE = re.compile(rb"\x1b(?!\[[0-9;:]*+[@-gijkm-qtv-~])")
_CANDIDATE_OR_SHIFT = re.compile(rb"[\x0e\x0f\x1b](?!(?<=\x1b)\[[0-9;:]*+[@-gijkm-qtv-~])")
_CHANGE = re.compile(
    rb"\x1b(?:"
    rb"\[(?:\?(?P<private>[0-9;]*)(?P<set>[hl])"
    rb"|(?P<ansi>[0-9;]*)(?P<ansi_set>[hl])"
    rb"|(?P<margins>[0-9;]*)r"
    rb"|(?P<soft>!)p"
    rb"|(?P<cursor>[0-9]*) q"
    rb"|>(?P<keys>4(?:;[0-9]*)?)m"
    rb"|(?P<saved>[su]))"
    rb"|\](?P<osc>[^\x07\x1b\x18\x1a]*+)(?:\x07|\x1b\\)"
    rb"|[PX^_][^\x1b\x18\x1a]*+\x1b\\"
    rb"|(?P<string>(?:\][^\x07\x1b\x18\x1a]*+|[PX^_][^\x1b\x18\x1a]*+)\x1b?\Z)"
    rb"|\][^\x07\x1b\x18\x1a]*+|[PX^_][^\x1b\x18\x1a]*+"  # a string that something else cut off
    rb"|(?P<slot>[()*+])(?P<charset>[ -/]?[0-~])"
    rb"|(?P<single>[78=>cno])"
    rb"|(?P<partial>(?:\[[0-?]*+[ -/]*+|[ -/]+)?\Z))"
    rb"|(?P<shift>[\x0e\x0f])"
)
_STRING_END = {True: re.compile(rb"[\x07\x18\x1a]|\x1b(?!\Z)"), False: re.compile(rb"[\x18\x1a]|\x1b(?!\Z)")}
_SGR = re.compile(rb"\x1b\[([0-9;:]*)m")
_PARTIAL_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")

_INITIALLY_SET: Final = frozenset({7, 25})  # autowrap, cursor visible
# Private modes that are remembered: application cursor keys, reverse video, origin, autowrap, cursor blinking and
# visible, reverse wraparound, application keypad, mouse protocols and encodings, focus, alternate screen, bracketed
# paste, colour scheme reports. Not among them: 3 (it clears), 1048 (it is an action), 2026 (it freezes the screen).
_MODES: Final = frozenset(
    {1, 5, 6, 7, 9, 12, 25, 45, 47, 66, 69, 1000, 1002, 1003, 1004, 1005, 1006, 1007, 1015, 1016}
    | {1047, 1049, 2004, 2031}
)
_ALTERNATE: Final = (1049, 1047, 47)
_ANSI_MODES: Final = frozenset({4, 20})  # insert, newline

# SGR parameters and the attribute that each sets; None takes it back.
_ATTRIBUTES: Final[dict[int, tuple[tuple[str, bytes | None], ...]]] = {
    1: (("bold", b"1"),),
    2: (("faint", b"2"),),
    3: (("italic", b"3"),),
    4: (("underline", b"4"),),
    5: (("blink", b"5"),),
    6: (("blink", b"6"),),
    7: (("inverse", b"7"),),
    8: (("hidden", b"8"),),
    9: (("strike", b"9"),),
    21: (("underline", b"21"),),
    22: (("bold", None), ("faint", None)),
    23: (("italic", None),),
    24: (("underline", None),),
    25: (("blink", None),),
    27: (("inverse", None),),
    28: (("hidden", None),),
    29: (("strike", None),),
    39: (("foreground", None),),
    49: (("background", None),),
    53: (("overline", b"53"),),
    55: (("overline", None),),
    59: (("line colour", None),),
}
_COLOURS: Final = {38: "foreground", 48: "background", 58: "line colour"}


class _Pen(msgspec.Struct, omit_defaults=True):
    """What DECSC saves, but for the cursor's position: colours and the like, character sets, origin mode."""

    attributes: dict[str, bytes] = {}
    charsets: dict[str, bytes] = {}
    shift: int = 0
    origin: bool = False

    def copy(self) -> _Pen:
        return _Pen(dict(self.attributes), dict(self.charsets), self.shift, self.origin)

    def restore(self) -> bytes:
        parts = [b"\x1b[" + b";".join((b"0", *self.attributes.values())) + b"m"] if self.attributes else []
        parts += [b"\x1b" + slot.encode() + charset for slot, charset in self.charsets.items()]
        if self.shift:
            parts.append({1: b"\x0e", 2: b"\x1bn", 3: b"\x1bo"}[self.shift])
        if self.origin:
            parts.append(b"\x1b[?6h")
        return b"".join(parts)


class State(msgspec.Struct, omit_defaults=True):
    """Everything that a tracker knows; small, and serialised as it is."""

    pen: _Pen = msgspec.field(default_factory=_Pen)
    saved: _Pen | None = None
    modes: dict[int, bool] = {}
    """Private modes that differ from a terminal's initial state."""
    ansi_modes: list[int] = []
    margins: bytes = b""
    cursor: bytes = b""
    keys: bytes = b""
    title: bytes = b""
    keypad: bool = False
    pending: bytes = b""
    """The start of an escape sequence, a control string or a UTF-8 character whose end has not come yet."""
    string: int = 0
    """The introducer (second byte) of a control string that is too long to be kept."""


class Tracker:
    """Follows a stream; `restore`, then `unfinished`, bring a terminal that was just reset into the state reached."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()

    @classmethod
    def load(cls, data: bytes) -> Tracker:
        """What `dump` gave. Raises `ValueError`."""
        try:
            return cls(msgspec.msgpack.decode(data, type=State))
        except msgspec.MsgspecError as error:
            raise ValueError(f"not the state of a terminal: {error}") from error

    def dump(self) -> bytes:
        return msgspec.msgpack.encode(self.state)

    @property
    def alternate(self) -> bool:
        """Whether a full-screen program has the screen."""
        return any(self.state.modes.get(mode) for mode in _ALTERNATE)

    def restore(self, rows: int = 0) -> bytes:
        """The state as output; `rows` of the terminal that gets it, if known: margins that do not fit are left out."""
        state = self.state
        parts = [b"\x1b]2;" + state.title + b"\x07"] if state.title else []
        parts += [b"\x1b[?%dh" % mode for mode in _ALTERNATE if state.modes.get(mode)]
        if state.margins and (not rows or _fits(state.margins, rows)):
            parts.append(b"\x1b[" + state.margins + b"r")
        parts += [
            b"\x1b[?%d%c" % (mode, b"h" if on else b"l") for mode, on in state.modes.items() if mode not in _ALTERNATE
        ]
        parts += [b"\x1b[%dh" % mode for mode in state.ansi_modes]
        if state.keypad:
            parts.append(b"\x1b=")
        if state.cursor:
            parts.append(b"\x1b[" + state.cursor + b" q")
        if state.keys:
            parts.append(b"\x1b[>" + state.keys + b"m")
        if state.saved is not None:
            parts += [state.saved.restore(), b"\x1b7\x1b[m\x1b(B\x1b)B\x0f\x1b[?6l"]
        parts.append(state.pen.restore())
        return b"".join(parts)

    @property
    def unfinished(self) -> bytes:
        """What the stream was in the middle of; it follows `restore`, and what comes next follows it."""
        if not self.state.string:
            return self.state.pending
        # Of a string too long to be kept the rest comes next: let it be of a kind that terminals pass over.
        return (b"\x1b]9999;" if self.state.string == 0x5D else b"\x1b_") + self.state.pending

    def feed(self, data: bytes) -> None:
        """Go on by `data`, which may begin and end anywhere."""
        state = self.state
        if state.pending:
            data, state.pending = state.pending + data, b""
        begin = 0
        if state.string:
            begin = self._pass_over_string(data)
        if b"\x1b" in data or b"\x0e" in data or b"\x0f" in data:
            self._changes(data, begin)
        if not state.pending and not state.string and data and data[-1] >= 0x80:
            partial = _PARTIAL_CHARACTER.search(data, max(begin, len(data) - 3))
            state.pending = partial[0] if partial else b""

    def _pass_over_string(self, data: bytes) -> int:
        """Where the string that began long ago ends in `data`."""
        state = self.state
        found = _STRING_END[state.string == 0x5D].search(data)
        if found is None:
            if data.endswith(b"\x1b"):  # perhaps the first half of the terminator
                state.pending = b"\x1b"
            return len(data)
        state.string = 0
        if found[0] != b"\x1b":
            return found.end()
        return found.end() + 1 if data[found.end()] == 0x5C else found.start()

    def _changes(self, data: bytes, begin: int) -> None:
        colours_from = begin
        shifts = b"\x0e" in data or b"\x0f" in data
        for candidate in (_CANDIDATE_OR_SHIFT if shifts else _CANDIDATE).finditer(data, begin):
            if candidate.start() < begin:
                continue  # within a control string
            change = _CHANGE.match(data, candidate.start())
            if change is None:
                continue
            begin = change.end()
            kind = change.lastgroup
            if kind in ("single", "saved", "soft", "set", "string"):  # these see or bound the colours before them
                self._colours(data, colours_from, change.start())
                colours_from = change.end()
            match kind:
                case "set":
                    self._set_private(change["private"], change["set"] == b"h")
                case "ansi_set":
                    self._set_ansi(change["ansi"], change["ansi_set"] == b"h")
                case "margins":
                    margins = change["margins"]
                    self.state.margins = margins if margins.strip(b"0;") else b""
                case "soft":
                    self._soft_reset()
                case "cursor":
                    self.state.cursor = change["cursor"] if change["cursor"] not in (b"", b"0") else b""
                case "keys":
                    self.state.keys = change["keys"] if b";" in change["keys"] else b""
                case "saved":
                    self._save() if change["saved"] == b"s" else self._unsave()
                case "osc":
                    self._operating_system(change["osc"])
                case "string":
                    if len(change[0]) <= MAX_PENDING:
                        self.state.pending = change[0]
                    else:
                        self.state.string = change["string"][0]
                        self.state.pending = b"\x1b" if change[0].endswith(b"\x1b") else b""
                case "charset":
                    self._designate(change["slot"].decode(), change["charset"])
                case "single":
                    self._single(change["single"])
                case "partial":
                    # No sequence has that many parameters: garbage is not kept.
                    self.state.pending = change[0] if len(change[0]) <= MAX_PENDING else b""
                case "shift":
                    self.state.pen.shift = 1 if change["shift"] == b"\x0e" else 0
        self._colours(data, colours_from, len(data))

    def _colours(self, data: bytes, begin: int, end: int) -> None:
        """Apply the SGR sequences of a stretch."""
        reset = max(data.rfind(b"\x1b[m", begin, end), data.rfind(b"\x1b[0m", begin, end))
        if reset >= 0:
            self.state.pen.attributes.clear()
            begin = reset + 3
        if data.find(b"\x1b[", begin, end) < 0:
            return
        # Of equal ones the last counts: what was set in between is set again by what follows it.
        found = dict.fromkeys(reversed(_SGR.findall(data, begin, end)))
        for parameters in reversed(found):
            self._render(parameters)

    def _render(self, text: bytes) -> None:
        attributes = self.state.pen.attributes
        parameters = iter(text.split(b";"))
        for parameter in parameters:
            number, _, rest = parameter.partition(b":")
            code = int(number[:6] or b"0")
            if code in _COLOURS:
                if rest:
                    colour: bytes | None = parameter
                else:
                    kind = next(parameters, b"")
                    count = {b"5": 1, b"2": 3}.get(kind, 0)
                    values = [next(parameters, b"") for _ in range(count)]
                    colour = b";".join((parameter, kind, *values)) if count else None
                if colour is not None and len(colour) <= 64:
                    _assign(attributes, _COLOURS[code], colour)
            elif code == 4 and rest:
                _assign(attributes, "underline", None if rest == b"0" else parameter[:8])
            elif code == 0:
                attributes.clear()
            elif code in _ATTRIBUTES:
                for name, value in _ATTRIBUTES[code]:
                    _assign(attributes, name, value)
            elif 30 <= code <= 37 or 90 <= code <= 97:
                _assign(attributes, "foreground", number)
            elif 40 <= code <= 47 or 100 <= code <= 107:
                _assign(attributes, "background", number)

    def _set_private(self, parameters: bytes, on: bool) -> None:
        state = self.state
        for parameter in parameters.split(b";"):
            mode = int(parameter[:6] or b"0")
            if mode == 6:
                state.pen.origin = on
            elif mode in (1048, 1049):
                self._save() if on else self._unsave()
            if mode == 66:
                state.keypad = on
            elif mode in _MODES and mode != 6:
                if on == (mode in _INITIALLY_SET):
                    state.modes.pop(mode, None)
                else:
                    state.modes[mode] = on
                if mode in _ALTERNATE and not on:
                    for other in _ALTERNATE:
                        state.modes.pop(other, None)

    def _set_ansi(self, parameters: bytes, on: bool) -> None:
        modes = self.state.ansi_modes
        for parameter in parameters.split(b";"):
            mode = int(parameter[:6] or b"0")
            if mode in _ANSI_MODES and on != (mode in modes):
                modes.append(mode) if on else modes.remove(mode)

    def _operating_system(self, text: bytes) -> None:
        kind, _, value = text.partition(b";")
        if kind in (b"0", b"2"):
            self.state.title = value if len(value) <= MAX_TITLE else b""

    def _designate(self, slot: str, charset: bytes) -> None:
        charsets = self.state.pen.charsets
        if charset == b"B":
            charsets.pop(slot, None)
        else:
            charsets[slot] = charset

    def _single(self, final: bytes) -> None:
        state = self.state
        match final:
            case b"7":
                self._save()
            case b"8":
                self._unsave()
            case b"=" | b">":
                state.keypad = final == b"="
            case b"n" | b"o":
                state.pen.shift = 2 if final == b"n" else 3
            case _:
                self.state = State()

    def _save(self) -> None:
        # That the initial state was saved need not be known: without anything saved it is what comes back.
        pen = self.state.pen.copy()
        self.state.saved = pen if pen != _Pen() else None

    def _unsave(self) -> None:
        self.state.pen = self.state.saved.copy() if self.state.saved is not None else _Pen()

    def _soft_reset(self) -> None:
        """DECSTR: what it resets of what is known here."""
        state = self.state
        state.pen, state.saved, state.margins, state.keypad, state.ansi_modes = _Pen(), None, b"", False, []
        for mode in (1, 7, 25):
            state.modes.pop(mode, None)


def _assign(attributes: dict[str, bytes], name: str, value: bytes | None) -> None:
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def _fits(margins: bytes, rows: int) -> bool:
    return all(int(margin[:6] or b"0") <= rows for margin in margins.split(b";"))
