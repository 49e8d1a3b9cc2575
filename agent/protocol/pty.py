"""What a client says on the reconnecting PTY port: one init, then requests (terminal-ssh-http.md §1.1).

The agent answers with the raw bytes of the terminal, which need no codec.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

MAX_INIT: Final = 65535
"""Bytes of JSON that the length in front of an init can tell."""
MAX_BUFFERED: Final = 65536
"""Bytes of one request that are kept until it is complete; of a longer one the text is handed on as it arrives."""
MAX_SIZE: Final = 65535
"""Rows or columns."""

_LENGTH = struct.Struct("<H")


class PtyProtocolError(ValueError):
    """The client broke the protocol; the text says how."""


@dataclass(frozen=True, slots=True)
class Init:
    """Which terminal the client wants, and how it is made if there is none; sizes may be 0: not known."""

    id: UUID
    rows: int = 0
    columns: int = 0
    command: str = ""
    container: str = ""
    container_user: str = ""
    backend: str = ""

    def encode(self) -> bytes:
        """As the Go client of 2026 writes it, length included. Raises `PtyProtocolError` when it is too long."""
        values = {
            "ID": str(self.id),
            "Height": self.rows,
            "Width": self.columns,
            "Command": self.command,
            "Container": self.container,
            "ContainerUser": self.container_user,
            "BackendType": self.backend,
        }
        text = json.dumps(values, separators=(",", ":"), ensure_ascii=False)
        for character, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
            text = text.replace(character, escape)
        body = text.encode("utf-8", "replace")
        if len(body) > MAX_INIT:
            raise PtyProtocolError(f"the command is too long: the init has {len(body)} bytes, {MAX_INIT} are possible")
        return _LENGTH.pack(len(body)) + body


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for the terminal: the text of one request, or a part of a long one."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A new size; both are at least 1."""

    rows: int
    columns: int


Event = Init | Input | Resize


def encode_request(data: str = "", rows: int = 0, columns: int = 0) -> bytes:
    """One request as a client writes it."""
    request: dict[str, str | int] = {}
    if data:
        request["data"] = data
    if rows or columns:
        request |= {"height": rows, "width": columns}
    return json.dumps(request, separators=(",", ":")).encode()


class PtyDecoder:
    """Takes what a client sent, in any pieces, and gives events; the first one is an `Init`.

    A request is judged as a whole, so that nothing of a malformed one reaches the terminal. Only a text beyond
    `MAX_BUFFERED` bytes (a paste) is handed on before its end is seen: memory stays bounded.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False
        self._scan = _Scanner()

    def receive(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises `PtyProtocolError`; the decoder is of no use after that."""
        self._buffer += data
        events: list[Event] = []
        if not self._started:
            init = self._init()
            if init is None:
                return events
            self._started = True
            events.append(init)
        while (end := self._scan.end_of_value(self._buffer)) is not None:
            value = bytes(self._buffer[:end])
            del self._buffer[:end]
            events += _request(value)
        if len(self._buffer) > MAX_BUFFERED:
            events.append(self._part_of_text())
        return events

    def _init(self) -> Init | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        fields = _object(bytes(self._buffer[_LENGTH.size : end]))
        del self._buffer[:end]
        identity = _text(fields, "id")
        try:
            terminal = UUID(identity)
        except ValueError:
            raise PtyProtocolError("the init has no valid ID") from None
        return Init(
            terminal,
            _size(fields, "height"),
            _size(fields, "width"),
            _text(fields, "command"),
            _text(fields, "container"),
            _text(fields, "containeruser"),
            _text(fields, "backendtype"),
        )

    def _part_of_text(self) -> Input:
        """Take what can be taken out of the long text that is arriving; the request keeps the rest of it."""
        begin = self._scan.string_begin
        if begin is None or not _DATA_KEY.search(self._buffer, 0, begin):
            raise PtyProtocolError(f"a request has more than {MAX_BUFFERED} bytes beside its text")
        end = _splittable(self._buffer)
        text = _loads(b'"' + bytes(self._buffer[begin:end]) + b'"')
        del self._buffer[begin:end]
        self._scan.rewind(end - begin)
        return Input(_utf8(text))


_DATA_KEY = re.compile(rb'"data"\s*:\s*"\Z', re.IGNORECASE)
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_UNFINISHED_ESCAPE = re.compile(
    rb"\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z"
)


class _Scanner:
    """Finds where the JSON value at the start of a growing buffer ends, looking at every byte once."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._at = 0
        self._depth = 0
        self.string_begin: int | None = None
        """Where the string that is arriving begins, in an object at the top; None outside of one."""
        self._string = False

    def rewind(self, count: int) -> None:
        """`count` bytes before the point reached were removed from the buffer."""
        self._at -= count

    def end_of_value(self, buffer: bytearray) -> int | None:
        while True:
            if self._depth == 0:
                found = _NOT_SPACE.search(buffer, self._at)
                if found is None:
                    buffer.clear()
                    self._at = 0
                    return None
                if found[0] != b"{":
                    raise PtyProtocolError("a request is not a JSON object")
                self._at, self._depth = found.end(), 1
            elif self._string:
                found = _IN_STRING.search(buffer, self._at)
                if found is None:
                    self._at = len(buffer)
                    return None
                if found[0] == b"\\":
                    if found.end() >= len(buffer):
                        self._at = found.start()
                        return None
                    self._at = found.end() + 1
                else:
                    self._at, self._string, self.string_begin = found.end(), False, None
            else:
                found = _STRUCTURE.search(buffer, self._at)
                if found is None:
                    self._at = len(buffer)
                    return None
                self._at = found.end()
                if found[0] == b'"':
                    self._string = True
                    self.string_begin = self._at if self._depth == 1 else None
                else:
                    self._depth += 1 if found[0] in b"{[" else -1
                    if self._depth == 0:
                        end = self._at
                        self._reset()
                        return end


def _splittable(buffer: bytearray) -> int:
    """The last point at which a text may be divided: in no escape, no surrogate pair, no UTF-8 character."""
    end = len(buffer)
    for back in range(1, 4):  # the start of a character is at most three bytes before its last
        byte = buffer[end - back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end - back if needed > back else end
        if byte < 0x80:
            break
    tail = end - 16
    # Pairs of backslashes are whole escapes; what is left of an odd run begins one.
    found = _UNFINISHED_ESCAPE.search(bytes(buffer[tail:]))
    if found is None:
        return end
    at = tail + found.start()
    run = 0
    while buffer[at - 1 - run] == 0x5C:
        run += 1
    return at if run % 2 == 0 else end


def _request(value: bytes) -> list[Event]:
    fields = _object(value)
    data, rows, columns = _text(fields, "data"), _size(fields, "height"), _size(fields, "width")
    events: list[Event] = []
    if data:
        events.append(Input(_utf8(data)))
    if rows and columns:
        events.append(Resize(rows, columns))
    return events


def _loads(value: bytes) -> Any:
    try:
        return json.loads(value.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise PtyProtocolError("malformed JSON") from None


def _object(value: bytes) -> dict[str, Any]:
    """The members of an object by their names in lower case; the last of equal ones counts, as in Go."""
    fields = _loads(value)
    if not isinstance(fields, dict):
        raise PtyProtocolError("not a JSON object")
    return {name.lower(): field for name, field in fields.items()}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PtyProtocolError(f"{name} is no string")
    return value


def _size(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise PtyProtocolError(f"{name} is not a number from 0 to {MAX_SIZE}")
    return value


def _utf8(text: str) -> bytes:
    """UTF-8; half of a surrogate pair becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
