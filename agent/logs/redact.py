"""Secrets do not leave the workspace in a log line, and do not enter the log file either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MARKER = b"***"
SHORTEST = 6
"""Characters. A shorter value would blacken half of the output and protect nobody."""

_SHORTEST_PART = 16  # of a value of several lines: its lines are secrets of their own, "-----END" is not

_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|SECRETS|PASS|PASSWORD|PASSWD|PASSPHRASE|PWD|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY|SECRET_?KEY|SIGNING_?KEY"
    r"|ENCRYPTION_?KEY|ACCOUNT_?KEY|CREDENTIALS?)(_|$)|PASSWORD|CREDENTIAL|SECRET|TOKEN$",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(r"^(OLD)?PWD$|_(FILE|PATH|DIR|URL|URI|ENDPOINT|NAME|ID|TYPE|EXPIRES?|TTL)$", re.IGNORECASE)


def secret_values(environment: Mapping[str, str]) -> set[str]:
    """The values of variables whose names look like secrets (`GITHUB_TOKEN`, `DB_PASSWORD`, `AWS_SECRET_ACCESS_KEY` …).

    A name that says where the secret is (`…_FILE`, `…_URL`) or what it is called (`…_ID`, `…_NAME`) does not count.
    """
    return {
        value
        for name, value in environment.items()
        if len(value.strip()) >= SHORTEST and _SECRET_NAME.search(name) and not _NOT_SECRET.search(name)
    }


class Redactor:
    """The values to replace. Adding is possible at any time and from any thread; streams pick it up."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.secrets: tuple[bytes, ...] = ()
        self.pattern: re.Pattern[bytes] | None = None
        self.add(values)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self.secrets)} values>"

    def add(self, values: Iterable[str]) -> None:
        """Replace these values from now on, as a whole and, where they have several lines, line by line."""
        secrets = set(self.secrets)
        for value in values:
            whole = value.strip()
            secrets.add(whole.encode("utf-8", "surrogateescape"))
            lines = [line.strip() for line in whole.splitlines()]
            if len(lines) > 1:
                secrets.update(line.encode("utf-8", "surrogateescape") for line in lines if len(line) >= _SHORTEST_PART)
        # The longest first: where one secret is the beginning of another, the other is what is looked for.
        ordered = tuple(sorted((s for s in secrets if len(s) >= SHORTEST), key=lambda s: (-len(s), s)))
        if ordered != self.secrets:
            self.pattern = re.compile(b"|".join(re.escape(secret) for secret in ordered))
            self.secrets = ordered

    def apply(self, text: str) -> str:
        """A text that is complete, redacted."""
        if self.pattern is None:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return self.pattern.sub(MARKER, data).decode("utf-8", "surrogateescape")


class StreamRedactor:
    """Replaces secrets in a stream, whatever its chunking; holds back only what may be the beginning of one.

    It also keeps account of positions in the original stream, which begins at `position`, so that a reader can go on
    from a line's beginning later.
    """

    def __init__(self, redactor: Redactor, position: int = 0) -> None:
        self._redactor = redactor
        self._held = b""
        self.position = position
        """Where the first byte is that has not come out, redacted or not."""
        self.line_start = position
        """Where the last line begins that has come out, or has begun to."""

    def feed(self, data: bytes) -> bytes:
        """What can be said for certain by now."""
        if self._held:
            data = self._held + data
            self._held = b""
        secrets, pattern = self._redactor.secrets, self._redactor.pattern
        if pattern is None:
            return self._literal(data)
        hold = _possible_beginning(data, secrets, 0)
        if not any(secret in data for secret in secrets):
            self._held = data[hold:]
            return self._literal(data[:hold])
        output = []
        done = 0
        while (match := pattern.search(data, done)) is not None and match.start() < hold:
            # Before `hold` no longer secret can begin, so this match stands however the stream goes on.
            output.append(self._literal(data[done : match.start()]))
            output.append(MARKER)
            done = match.end()
            self.position += len(match[0])
            if done > hold:
                hold = _possible_beginning(data, secrets, done)
        self._held = data[hold:]
        output.append(self._literal(data[done:hold]))
        return b"".join(output)

    def flush(self) -> bytes:
        """The rest; the stream is over."""
        rest, self._held = self._held, b""
        pattern = self._redactor.pattern
        if pattern is None:
            return self._literal(rest)
        output: list[bytes] = []
        done = 0
        for match in pattern.finditer(rest):
            output += self._literal(rest[done : match.start()]), MARKER
            done = match.end()
            self.position += len(match[0])
        output.append(self._literal(rest[done:]))
        return b"".join(output)

    def _literal(self, data: bytes) -> bytes:
        newline = data.rfind(b"\n")
        if newline >= 0:
            self.line_start = self.position + newline + 1
        self.position += len(data)
        return data


def _possible_beginning(data: bytes, secrets: tuple[bytes, ...], start: int) -> int:
    """The first position from `start` on where `data` ends with a proper beginning of a secret; else its length."""
    earliest = len(data)
    for secret in secrets:
        at = data.find(secret[:1], max(start, len(data) - len(secret) + 1), earliest)
        while at >= 0:
            if secret.startswith(data[at:]):
                earliest = at
                break
            at = data.find(secret[:1], at + 1, earliest)
    return earliest
