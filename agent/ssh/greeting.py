"""What an interactive shell begins with: announcements and the message of the day (terminal-ssh-http.md §3.12)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_MOTD: Final = 1 << 20
"""Bytes of the file that are shown."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """`banners` are the announcements that are switched on; `home` is empty where it is not known."""

    banners: Sequence[str] = ()
    motd_file: str = ""
    home: str = ""

    def render(self) -> bytes:
        """What to write before the shell starts. Looks at files: call it in a thread. Raises `OSError` when the
        message of the day is there and cannot be read."""
        parts = [_lines(text.strip()) + "\r\n" for text in self.banners if text.strip()]
        if not (self.home and os.path.exists(os.path.join(self.home, ".hushlogin"))):
            parts.append(_lines(self._motd()))
        return "".join(parts).encode("utf-8", "surrogateescape")

    def _motd(self) -> str:
        if not self.motd_file:
            return ""
        try:
            with open(self.motd_file, "rb") as file:
                return file.read(MAX_MOTD).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""


def _lines(text: str) -> str:
    """Every line ended for a terminal."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return "".join(line.removesuffix("\r") + "\r\n" for line in lines)
