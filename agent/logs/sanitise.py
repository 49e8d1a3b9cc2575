"""What the server must not see in a line: invalid UTF-8 and NUL (agent-api.md §10.3)."""

from __future__ import annotations

import re

MARK = "❌"

_INVALID_RUN = re.compile("[\udc80-\udcff]+")


def sanitise(data: bytes) -> bytes:
    """Replace each maximal run of invalid UTF-8 bytes, and each NUL, by one `❌`. Newlines are left alone."""
    if data.isascii():
        return data.replace(b"\0", MARK.encode()) if b"\0" in data else data
    text = data.decode("utf-8", "surrogateescape")  # one lone surrogate per invalid byte, and no other way to get one
    return _INVALID_RUN.sub(MARK, text).replace("\0", MARK).encode()
