"""Versions of the agent API (agent-api.md §7)."""

from __future__ import annotations

import re
from typing import NamedTuple


class ApiVersion(NamedTuple):
    """`major.minor`, ordered numerically: 2.9 comes before 2.10."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = ApiVersion(2, 0)
CURRENT = ApiVersion(2, 10)


class VersionRefusedError(ValueError):
    """The text is the `detail` that a server answers for field `version` (§7.1)."""


def accept_version(text: str, server: ApiVersion = CURRENT) -> ApiVersion:
    """The version that a client asked for, or `VersionRefusedError` when a server at `server` must refuse it."""
    if not text:
        return OLDEST
    parts = text.split(".")
    if len(parts) != 2:
        raise VersionRefusedError(f"invalid version string: {text}")
    numbers = []
    for name, part in zip(("major", "minor"), parts, strict=True):
        if re.fullmatch(r"[+-]?[0-9]+", part, re.ASCII) is None:
            raise VersionRefusedError(f"invalid {name} version: {text}")
        numbers.append(int(part))
    asked = ApiVersion(*numbers)
    if asked.major > server.major:
        raise VersionRefusedError(f"server is at version {server}, behind requested major version {text}")
    if asked.major < server.major:
        raise VersionRefusedError(f"version {text} is no longer supported")
    if asked.minor > server.minor:
        raise VersionRefusedError(f"server is at version {server}, behind requested minor version {text}")
    return asked


def offered_version(detail: str) -> ApiVersion | None:
    """The server's own version out of its refusal, e.g. `server is at version 2.4, behind requested …` (§7.2)."""
    found = re.search(r"server is at version ([0-9]{1,4})\.([0-9]{1,4})\b", detail, re.ASCII)
    return ApiVersion(int(found[1]), int(found[2])) if found else None
