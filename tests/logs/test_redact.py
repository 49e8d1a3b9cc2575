"""Secrets do not come through, whatever the chunking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.logs import Redactor, secret_values
from agent.logs.redact import MARKER, StreamRedactor
from tests.logs.chunks import chunked, chunkings

_SECRETS = st.lists(st.text(alphabet="ab\n", min_size=6, max_size=12), min_size=1, max_size=3)
_PIECES = st.lists(st.sampled_from(["a", "b", "\n", "aaa", "x"]), max_size=60)


def _through(redactor: Redactor, output: bytes, cuts: list[int]) -> bytes:
    stream = StreamRedactor(redactor)
    result = b"".join([stream.feed(chunk) for chunk in chunked(output, cuts)]) + stream.flush()
    assert stream.position == len(output)
    return result


@given(_SECRETS, _PIECES, st.lists(st.integers(0, 100), max_size=3), chunkings())
def test_any_chunking_gives_what_redacting_at_once_gives(
    secrets: list[str], pieces: list[str], places: list[int], cuts: list[int]
) -> None:
    for place in places:
        pieces.insert(place, secrets[place % len(secrets)])
    output = "".join(pieces)
    redactor = Redactor(secrets)
    expected = redactor.apply(output).encode()
    assert _through(redactor, output.encode(), cuts) == expected
    assert not any(secret in expected for secret in redactor.secrets)


@given(_SECRETS, _PIECES, chunkings(), st.data())
def test_a_reader_can_go_on_from_any_line_that_has_come_out(
    secrets: list[str], pieces: list[str], cuts: list[int], data: st.DataObject
) -> None:
    output = "".join(pieces).encode()
    redactor = Redactor(secrets)
    stream = StreamRedactor(redactor)
    came = b""
    for chunk in chunked(output, cuts)[: data.draw(st.integers(0, len(cuts)))]:
        came += stream.feed(chunk)
        assert output[: stream.line_start].endswith(b"\n") or stream.line_start == 0
    complete = came[: came.rfind(b"\n") + 1]
    again = StreamRedactor(redactor, stream.line_start)
    rest = again.feed(output[stream.line_start :]) + again.flush()
    assert complete + rest == redactor.apply(output.decode()).encode()


def test_only_what_may_be_a_secret_is_held_back() -> None:
    stream = StreamRedactor(Redactor(["hunter22"]))
    assert stream.feed(b"the password is hunt") == b"the password is "
    assert stream.feed(b"er22, hunted") == MARKER + b", hunted"
    assert stream.feed(b" hunter2") == b" "
    assert stream.flush() == b"hunter2"


def test_secrets_of_several_lines() -> None:
    key = "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG\nx\n-----END KEY-----"
    redactor = Redactor([key + "\n"])
    assert _through(redactor, f"a\n{key}\nb\n".encode(), [5, 5, 5]) == b"a\n***\nb\n"
    assert redactor.apply("just MIIBVgIBADANBgkqhkiG, unquoted") == "just ***, unquoted"


def test_a_secret_that_begins_another() -> None:
    redactor = Redactor(["secret", "secret-and-more"])
    assert _through(redactor, b"secret-and-more secret-and-mor", [6, 3]) == b"*** ***-and-mor"


def test_values_may_be_added_while_a_stream_is_read() -> None:
    redactor = Redactor()
    stream = StreamRedactor(redactor)
    assert stream.feed(b"tok3n-value") == b"tok3n-value"
    redactor.add(["tok3n-value"])
    assert stream.feed(b"tok3n-value") == MARKER


def test_short_values_are_left_alone_and_nothing_is_shown() -> None:
    redactor = Redactor(["yes", "  short ", "long enough"])
    assert redactor.apply("yes short") == "yes short"
    assert "enough" not in repr(redactor)


def test_which_variables_are_secret() -> None:
    secret = [
        "GITHUB_TOKEN", "CODER_AGENT_TOKEN", "client_secret", "DB_PASSWORD", "PGPASSWORD", "OPENAI_API_KEY", "APIKEY",
        "SSH_PRIVATE_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_CREDENTIALS", "NPM_TOKEN", "MYSQL_PWD", "KEY_PASSPHRASE",
        "DB_PASS", "SMTP_PASS",
    ]  # fmt: skip
    plain = [
        "PATH", "HOME", "PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "GITHUB_TOKEN_FILE", "AWS_ACCESS_KEY_ID", "KEY",
        "COMPASS",
    ]  # fmt: skip
    environment = {name: f"value of {name}" for name in secret + plain}
    assert secret_values(environment) == {f"value of {name}" for name in secret}
    assert secret_values({"A_TOKEN": "short", "B_TOKEN": "      "}) == set()


def test_the_pattern_is_not_fooled_by_special_characters() -> None:
    assert Redactor(["a.c+(x)["]).apply("a.c+(x)[ abc+(x)[") == "*** abc+(x)["
