"""A terminal emulator of others, to judge what ours leave out: pyte. And what real programs say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyte

RECORDINGS = Path(__file__).with_name("recordings")
NAMES = sorted(path.stem for path in RECORDINGS.glob("*.bin"))
ROWS, COLUMNS = 24, 80
_KEYS = re.compile(rb"\x1b\[[>?][0-9;]*m")


def recording(name: str) -> bytes:
    return understood((RECORDINGS / f"{name}.bin").read_bytes())


def drawn_again(name: str) -> bytes:
    """What the program drew when it was nudged."""
    return understood((RECORDINGS / f"{name}.again").read_bytes())


def understood(output: bytes) -> bytes:
    """Without what pyte takes for something else: how keys are to be encoded (it takes that for colours)."""
    return _KEYS.sub(b"", output)


class Emulator:
    """One terminal of 24 x 80."""

    def __init__(self, *outputs: bytes) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        for output in outputs:
            self.feed(output)

    def feed(self, output: bytes) -> None:
        self._stream.feed(output)

    def state(self) -> dict[str, Any]:
        """What output changes for later output, without what is on the screen."""
        screen = self._screen
        return {
            "modes": frozenset(screen.mode),
            "pen": screen.cursor.attrs._replace(data=" "),
            "hidden": screen.cursor.hidden,
            "charsets": (screen.charset, screen.g0_charset, screen.g1_charset),
            "margins": screen.margins,
            "title": screen.title,
        }

    def picture(self) -> dict[str, Any]:
        """All of it."""
        screen = self._screen
        cells = [[screen.buffer[row][column] for column in range(COLUMNS)] for row in range(ROWS)]
        return {**self.state(), "cursor": (screen.cursor.y, screen.cursor.x), "cells": cells}
