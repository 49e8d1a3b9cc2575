"""Which commands count as file transfer (terminal-ssh-http.md §3.8)."""

from __future__ import annotations

import posixpath
from typing import Final

from agent.process.command import CommandError, split_words

REFUSAL: Final = b"\x02File transfer has been disabled.\n"
"""What clients of the old scp show as an error."""
STATUS: Final = 65
_PROGRAMS: Final = frozenset({"nc", "rsync", "scp", "sftp"})


def is_file_transfer(command: str) -> bool:
    """Whether the first word of `command` is a program that transfers files."""
    try:
        words = split_words(command)
    except CommandError:
        return False
    return bool(words) and posixpath.basename(words[0]) in _PROGRAMS
