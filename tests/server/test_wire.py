"""JSON, times and UUIDs as Go writes and reads them."""

from __future__ import annotations

import contextlib
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.errors import ApiError
from agent.server.wire import Body, decode, encode, parse_uuid, rfc3339

ID = UUID("936f0a74-460e-44d7-a254-0789f5951835")


class Sample(Body):
    required = ("name",)

    name: str = ""
    count: int = 0


def test_json_is_compact_escaped_and_ends_with_a_newline() -> None:
    assert (
        encode({"a": "<b>&\u2028é", "c": [1, None]}) == '{"a":"\\u003cb\\u003e\\u0026\\u2028é","c":[1,null]}\n'.encode()
    )
    assert encode(None) == b"null\n"


@given(st.recursive(st.none() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_escapes_change_nothing(value: object) -> None:
    text = encode(value)
    assert json.loads(text) == value
    assert not set(b"<>&") & set(text)


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1730433233500000, "2024-11-01T03:53:53.5Z"),
        (1730433233000001, "2024-11-01T03:53:53.000001Z"),
        (1730433230000000, "2024-11-01T03:53:50Z"),
    ],
)
def test_times(micros: int, text: str) -> None:
    assert rfc3339(micros) == text


@pytest.mark.parametrize("text", [str(ID), str(ID).upper(), f"urn:uuid:{ID}", f"{{{ID}}}", ID.hex])
def test_every_form_of_a_uuid(text: str) -> None:
    assert parse_uuid(text) == ID


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nope", "invalid UUID length: 4"),
        ("", "invalid UUID length: 0"),
        ("x" * 36, "invalid UUID format"),
        (str(ID).replace("-", "0"), "invalid UUID format"),
        (ID.hex + "----", "invalid UUID format"),
        (f"urn:uuix:{ID}", 'invalid urn prefix: "urn:uuix:"'),
        (f"[{ID}]", "invalid UUID format"),
    ],
)
def test_what_is_no_uuid(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_uuid(text)


@given(st.text(max_size=50))
def test_uuids_never_crash(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_uuid(text)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b'{"name":', "unexpected EOF"),
        (b"nope", "invalid character"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"name": 3}', "Expected `str`, got `int`"),
        (b'{"name": "\xff"}', "UTF-8"),
    ],
)
def test_bodies_that_are_no_json(data: bytes, detail: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(data, Sample)
    assert (caught.value.status, caught.value.body.message) == (400, "Request body must be valid JSON.")
    assert detail in caught.value.body.detail


def test_required_fields() -> None:
    with pytest.raises(ApiError) as caught:
        decode(b'{"count": 1}', Sample)
    assert encode(caught.value.body) == (
        b'{"message":"Validation failed.","validations":[{"field":"name",'
        b'"detail":"Validation failed for tag \\"required\\" with value: \\"\\""}]}\n'
    )


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"name": "a", "more": {}}', Sample).name == "a"
