"""How the API speaks: JSON as Go writes it, errors, strict query parameters (terminal-ssh-http.md §4)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_HTML: Final = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})
_NO_TEXT: Final = re.compile("[\ud800-\udfff]")


def to_json(value: object) -> bytes:
    """One line of JSON, safe inside HTML. What is no valid text (a file name, say) is written with U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # `<`, `>` and `&` occur only inside strings, so that they may be escaped in the finished text.
    return (_NO_TEXT.sub("\ufffd", text.translate(_HTML)) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Invalid:
    """One parameter that cannot be used."""

    field: str
    detail: str


class ApiError(Exception):
    """What a handler answers instead of a result: a status, and a body of `message`, `detail` and `validations`."""

    def __init__(self, status: int, message: str, detail: str = "", validations: Iterable[Invalid] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.detail = detail
        self.validations = tuple(validations)

    def body(self) -> dict[str, Any]:
        """The body; keys without a value are omitted."""
        body: dict[str, Any] = {"message": self.message}
        if self.detail:
            body["detail"] = self.detail
        if self.validations:
            body["validations"] = [{"field": item.field, "detail": item.detail} for item in self.validations]
        return body


class Query:
    """Query parameters; unknown ones are mistakes, too. Ask for each, then `check`."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given
        self._known: set[str] = set()
        self._invalid: list[Invalid] = []

    def text(self, name: str, *, required: bool = False) -> str:
        """The parameter, empty if it is not given."""
        self._known.add(name)
        value = self._given.get(name, "")
        if required and not value:
            self._invalid.append(Invalid(name, f'Query param "{name}" is required and cannot be empty'))
        return value

    def count(self, name: str) -> int:
        """A whole number from 0 up; 0 if it is not given."""
        value = self.text(name)
        if not value:
            return 0
        # No number of bytes has more digits, and Python's conversion takes more forms than others'.
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            self._invalid.append(Invalid(name, f'Query param "{name}" must be a valid positive integer, not "{value}"'))
            return 0
        return int(value)

    def check(self) -> None:
        """Raises `ApiError` (400) if there was any mistake."""
        unknown = [
            Invalid(name, f'"{name}" is not a valid query param') for name in self._given if name not in self._known
        ]
        if self._invalid or unknown:
            raise ApiError(400, "Query parameters have invalid values.", validations=[*self._invalid, *unknown])


def object_from(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises `ApiError` (400)."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "Request body must be valid JSON.", str(error)) from error
    if not isinstance(value, dict):
        raise ApiError(400, "Request body must be valid JSON.", "it must be an object")
    return value
