"""JSON as Go servers write and read it (agent-api.md §1.4). Plain functions, no I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, TypeVar
from uuid import UUID

import msgspec

from agent.server.errors import ApiError, Validation, invalid

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""A point in time in a response: what `rfc3339` makes."""

ZERO_TIME = "0001-01-01T00:00:00Z"

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_ESCAPES = (
    (b"&", rb"\u0026"),
    (b"<", rb"\u003c"),
    (b">", rb"\u003e"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)


class Body(msgspec.Struct, kw_only=True):
    """A request body. Every field has a default, as missing ones take zero values; `required` ones must not be it."""

    required: ClassVar[tuple[str, ...]] = ()


B = TypeVar("B", bound=Body)


def encode(value: Any) -> bytes:
    """Compact JSON, HTML-sensitive characters escaped, one newline at the end."""
    text = _encoder.encode(value)
    # All of these can only stand inside strings, where the escape means the same.
    for raw, escaped in _ESCAPES:
        if raw in text:
            text = text.replace(raw, escaped)
    return text + b"\n"


def decode(data: bytes, kind: type[B]) -> B:
    """The request body, checked. Raises `ApiError` 400."""
    body = decode_json(data, kind)
    missing = [name for name in kind.required if not getattr(body, name)]
    if missing:
        detail = 'Validation failed for tag "required" with value: ""'
        raise invalid(*(Validation(name, detail) for name in missing))
    return body


def decode_json(data: bytes, kind: type[T]) -> T:
    """The first JSON value of a body. Raises `ApiError` 400 with the decoder's reason."""
    if not data.strip():
        raise ApiError(400, "Request body must be valid JSON.", "EOF")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        reason = "unexpected EOF" if "truncated" in str(error) else str(error)
        raise ApiError(400, "Request body must be valid JSON.", reason) from error
    except UnicodeDecodeError as error:
        raise ApiError(400, "Request body must be valid JSON.", "the text is not valid UTF-8") from error


def rfc3339(micros: int) -> Time:
    """Microseconds since 1970 as text in UTC, without trailing zeros: `2024-11-01T03:53:53.5Z`."""
    seconds, fraction = divmod(micros, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:06}".rstrip("0") + "Z" if fraction else f"{text}Z"


def optional_time(micros: int | None) -> Time | msgspec.UnsetType:
    """The same for a field that is left out when there is no time."""
    return msgspec.UNSET if micros is None else rfc3339(micros)


def parse_uuid(text: str) -> UUID:
    """Any of the four textual forms. Raises ValueError with the reason in the words of Go's parser."""
    body = text
    if len(text) == 36 + 9:
        if text[:9].lower() != "urn:uuid:":
            raise ValueError(f'invalid urn prefix: "{text[:9]}"')
        body = text[9:]
    elif len(text) == 36 + 2:
        if text[0] != "{" or text[-1] != "}":
            raise ValueError("invalid UUID format")
        body = text[1:-1]
    elif len(text) not in (32, 36):
        raise ValueError(f"invalid UUID length: {len(text.encode(errors='replace'))}")
    if re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", body, re.ASCII) is None:
        raise ValueError("invalid UUID format")
    return UUID(body)
