"""Token authentication: a fixed token, or a file that is read again before every dial.

`CredentialSource` is the seam for instance identity: a source for a cloud exchanges a signed document for a session
token each time `obtain` is called.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

MAX_TOKEN_BYTES = 16 * 1024


class IdentityError(Exception):
    """No token could be had; the text names the file or variable at fault. The attempt fails and is repeated."""


class CredentialSource(Protocol):
    """Gives the agent's session token."""

    async def obtain(self) -> str:
        """The token for the next dial, fetched afresh (agent-api.md §5.2). Raises `IdentityError`."""


class FixedToken:
    """The token of a flag or an environment variable: the same for the life of the process."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def obtain(self) -> str:
        return self._token


class FileToken:
    """A token file: trimmed, and read before every dial, so that a rotated token needs no restart."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def obtain(self) -> str:
        return await asyncio.to_thread(read_token_file, self._path)


def read_token_file(path: str) -> str:
    """The trimmed content of a token file. Raises `IdentityError` naming the file and what to do."""
    try:
        # A FIFO in place of the file must not hang the agent, hence O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise IdentityError(
            f'read token file "{path}": {error.strerror or error}; CODER_AGENT_TOKEN_FILE must name a readable file '
            "that holds the agent token"
        ) from error
    if content is None or len(content) > MAX_TOKEN_BYTES:
        raise IdentityError(f'read token file "{path}": it is no token: more than {MAX_TOKEN_BYTES} bytes')
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise IdentityError(f'read token file "{path}": it is no token: not plain text') from error
    if not token:
        raise IdentityError(f'token file "{path}" is empty: CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set')
    if not token.isprintable() or " " in token:
        raise IdentityError(f'read token file "{path}": it is no token: more than one word')
    return token
