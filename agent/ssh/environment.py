"""Variables that a client asks for, and what it tells the agent by them (terminal-ssh-http.md §3.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.ssh.counters import Kind

MAX_BYTES: Final = 256 * 1024
"""Of all requested names and values; the kernel refuses commands with much more."""
MAX_VARIABLES: Final = 4096
_MAX_STRING: Final = 131071
"""Of `NAME=value`, the NUL at its end not counted (MAX_ARG_STRLEN)."""
_TYPE: Final = "CODER_SSH_SESSION_TYPE"
_CONTAINER: Final = ("CODER_CONTAINER", "CODER_CONTAINER_USER")
_KINDS: Final = {"": Kind.SSH, "ssh": Kind.SSH, "vscode": Kind.VSCODE, "jetbrains": Kind.JETBRAINS}


class RequestedVariables:
    """The `env` requests of one session, in order."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, str]] = []
        self._size = 0

    def add(self, name: bytes, value: bytes) -> bool:
        """False for one that no command could get: it is left out."""
        size = len(name) + len(value) + 1
        if (
            not name
            or b"=" in name
            or b"\0" in name + value
            or size > _MAX_STRING
            or self._size + size > MAX_BYTES
            or len(self._pairs) >= MAX_VARIABLES
        ):
            return False
        self._size += size
        self._pairs.append((name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")))
        return True

    def resolve(self) -> Requested:
        """What the requests mean together."""
        return Requested.of(self._pairs)


@dataclass(frozen=True, slots=True)
class Requested:
    """`variables` are for the command: the first of a name counts."""

    kind: Kind = Kind.SSH
    kind_text: str = ""
    variables: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Requested:
        kind_text = ""
        variables: dict[str, str] = {}
        for name, value in pairs:
            if name.startswith(_TYPE):
                kind_text = value
            elif name not in _CONTAINER:
                variables.setdefault(name, value)
        return cls(_KINDS.get(kind_text.lower(), Kind.UNKNOWN), kind_text, variables)
