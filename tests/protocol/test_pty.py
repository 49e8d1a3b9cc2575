from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.protocol.pty import (
    MAX_BUFFERED,
    Event,
    Init,
    Input,
    PtyDecoder,
    PtyProtocolError,
    Resize,
    encode_request,
)

ID = UUID("11111111-2222-4333-8444-555555555555")
INIT = bytes.fromhex(
    """
    84 00 7b 22 49 44 22 3a 22 31 31 31 31 31 31 31 31 2d 32 32 32 32 2d 34 33 33 33 2d 38 34 34 34
    2d 35 35 35 35 35 35 35 35 35 35 35 35 22 2c 22 48 65 69 67 68 74 22 3a 32 34 2c 22 57 69 64 74
    68 22 3a 38 30 2c 22 43 6f 6d 6d 61 6e 64 22 3a 22 22 2c 22 43 6f 6e 74 61 69 6e 65 72 22 3a 22
    22 2c 22 43 6f 6e 74 61 69 6e 65 72 55 73 65 72 22 3a 22 22 2c 22 42 61 63 6b 65 6e 64 54 79 70
    65 22 3a 22 22 7d
    """
)


def framed(body: str) -> bytes:
    return len(body.encode()).to_bytes(2, "little") + body.encode()


def decode(*pieces: bytes) -> list[Event]:
    decoder = PtyDecoder()
    return [event for piece in pieces for event in decoder.receive(piece)]


def requests(*pieces: bytes) -> list[Event]:
    """Joined, as far as input follows input."""
    result: list[Event] = []
    for event in decode(INIT, *pieces)[1:]:
        if isinstance(event, Input) and result and isinstance(result[-1], Input):
            result[-1] = Input(result[-1].data + event.data)
        else:
            result.append(event)
    return result


def test_the_init_of_the_specification() -> None:
    assert decode(INIT) == [Init(ID, 24, 80)]
    assert Init(ID, 24, 80).encode() == INIT


@pytest.mark.spec("terminal-ssh-http", 2)
def test_an_old_client_and_unknown_keys() -> None:
    old = framed(f'{{"ID":"{ID}","Height":24,"Width":80,"Command":""}}')
    assert old[:8] == bytes.fromhex("51007b224944223a")
    assert decode(old) == [Init(ID, 24, 80)]
    assert decode(framed(f'{{"id":"{ID}","HEIGHT":1,"Later":[{{"x":1}}],"Command":null}}')) == [Init(ID, 1, 0)]


def test_html_is_escaped_as_go_does_it() -> None:
    encoded = Init(ID, command="a<b>&c é").encode()
    assert b'"Command":"a\\u003cb\\u003e\\u0026c \xc3\xa9"' in encoded
    assert decode(encoded) == [Init(ID, command="a<b>&c é")]


def test_a_command_that_no_init_can_carry_is_refused() -> None:
    with pytest.raises(PtyProtocolError, match="too long"):
        Init(ID, command="x" * 65536).encode()


@pytest.mark.spec("terminal-ssh-http", 1)
def test_init_and_requests_in_one_piece_and_in_single_bytes() -> None:
    stream = INIT + b'{"data":"a"} \n{"height":2,"width":3}{"data":"b","height":4,"width":5}'
    expected = [Init(ID, 24, 80), Input(b"a"), Resize(2, 3), Input(b"b"), Resize(4, 5)]
    assert decode(stream) == expected
    assert decode(*(bytes([byte]) for byte in stream)) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"{}", []),
        (b'{"data":""}', []),
        (b'{"data":null,"height":null}', []),
        (b'{"height":0,"width":80}', []),
        (b'{"height":80}', []),
        (b'{"width":1,"height":65535}', [Resize(65535, 1)]),
        (b'{"height":30,"width":100,"data":"x"}', [Input(b"x"), Resize(30, 100)]),
        (b'{"DATA":"x"}', [Input(b"x")]),
        (b'{"data":"x","data":"y"}', [Input(b"y")]),
        (b'{"data":"}{\\"\\\\","other":{"a":["}"]}}', [Input(b'}{"\\')]),
        (b'{"data":"\\ud83d\\ude00 \\ud83d"}', [Input("😀 �".encode())]),
        (b'{"data":"\xff"}', [Input("�".encode())]),
    ],
)
def test_requests(request_: bytes, expected: list[Event]) -> None:
    assert requests(request_) == expected


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"[]",
        b"5 ",
        b'"text"',
        b'{"data":1}',
        b'{"data":"x","height":"1"}',
        b'{"height":65536,"width":1}',
        b'{"height":-1,"width":1}',
        b'{"height":1.0,"width":1}',
        b'{"height":true,"width":1}',
        b'{"data" "x"}',
        b'{"data":"x",}',
        b'{"data":"a\nb"}',
        b'{"x":' + b"[" * 60000 + b"]" * 60000 + b"}",
        b"{" + b"[" * 70000,
        b'{"other":"' + b"x" * 70000,
    ],
)
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(PtyProtocolError):
        requests(garbage)


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '{"ID":""}', '{"ID":"x"}', '{"ID":5}', f'{{"ID":"{ID}","Width":70000}}']
)
def test_a_bad_init_is_an_error(body: str) -> None:
    with pytest.raises(PtyProtocolError):
        decode(framed(body))


def test_a_long_paste_is_handed_on_as_it_arrives() -> None:
    decoder = PtyDecoder()
    decoder.receive(INIT + b'{"data":"')
    total = 0
    for _ in range(200):
        total += sum(len(event.data) for event in decoder.receive(b"x" * 50_000) if isinstance(event, Input))
        assert len(decoder._buffer) <= MAX_BUFFERED
    events = decoder.receive(b'","height":5,"width":6}')
    assert total + sum(len(event.data) for event in events if isinstance(event, Input)) == 10_000_000
    assert events[-1] == Resize(5, 6)


TEXT = st.text(st.sampled_from('a"\\\n\x00é漢😀{}[],:\ud83d'), min_size=1, max_size=30)


@settings(deadline=None, max_examples=40)
@given(TEXT, st.integers(0, 40), st.booleans(), st.lists(st.integers(1, 30_000), min_size=3, max_size=12))
def test_a_long_text_arrives_whole_wherever_it_is_cut(text: str, offset: int, escape: bool, cuts: list[int]) -> None:
    long = "x" * offset + text * (80_000 // len(text))
    body = json.dumps({"height": 1, "data": long, "width": 2}, ensure_ascii=escape).encode("utf-8", "replace")
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(body[at : at + cut])
        at += cut
    expected = json.loads(body.decode()).get("data").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert requests(*pieces, body[at:]) == [Input(expected.encode()), Resize(1, 2)]


@given(st.binary(max_size=100), st.data())
def test_any_bytes_are_events_or_an_error_however_they_are_cut(garbage: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(garbage)))
    results: list[object] = []
    for pieces in ([garbage], [garbage[:cut], garbage[cut:]]):
        try:
            results.append(requests(*pieces))
        except PtyProtocolError:
            results.append("error")
    assert results[0] == results[1]


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 65535), st.integers(0, 65535)), max_size=8))
def test_what_is_encoded_is_decoded(values: list[tuple[str, int, int]]) -> None:
    expected: list[Event] = []
    for text, rows, columns in values:
        expected += [Input(text.encode())] if text else []
        expected += [Resize(rows, columns)] if rows and columns else []
    assert decode(INIT, b"".join(encode_request(*value) for value in values))[1:] == expected
