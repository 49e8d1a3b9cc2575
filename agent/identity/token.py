"""Token authentication: a fixed token, or a file that is read again before every dial (agent-api.md §5.1, §5.2)."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Protocol

MAX_TOKEN_BYTES = 16 * 1024
SYSTEMD_CREDENTIAL = "agent-token"


class IdentityError(Exception):
    """No token could be had. The text names the file or variable at fault; it never holds a token."""


class CredentialSource(Protocol):
    """Gives the agent's session token."""

    async def obtain(self) -> str:
        """The token for the next dial, fetched afresh. Raises `IdentityError`; the attempt may be repeated."""


class FixedToken:
    """The token of a flag or an environment variable: the same for the life of the process."""

    def __init__(self, token: str) -> None:
        self._token = checked_token(token, "CODER_AGENT_TOKEN")

    async def obtain(self) -> str:
        return self._token


class FileToken:
    """A token file, trimmed, and read before every dial, so that a rotated token needs no restart.

    `what` says in errors what kind of file it is, and `remedy` what to do.
    """

    def __init__(self, path: str, what: str, remedy: str) -> None:
        self._path = path
        self._what = what
        self._remedy = remedy

    async def obtain(self) -> str:
        return await asyncio.to_thread(self.read)

    def read(self) -> str:
        """The token, read at once. Raises `IdentityError`."""
        name = f'read {self._what} "{self._path}"'
        try:
            content = _read_regular_file(self._path, MAX_TOKEN_BYTES + 1)
        except OSError as error:
            raise IdentityError(f"{name}: {error.strerror or error}; {self._remedy}") from error
        if content is None:
            raise IdentityError(f"{name}: not a regular file, which it must be to be read again; {self._remedy}")
        if len(content) > MAX_TOKEN_BYTES:
            raise IdentityError(f"{name}: it is no token: more than {MAX_TOKEN_BYTES} bytes; {self._remedy}")
        try:
            text = content.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise IdentityError(f"{name}: it is no token: not plain text; {self._remedy}") from error
        if not text:
            raise IdentityError(f"{name}: it is empty; {self._remedy}")
        return checked_token(text, name)


def token_source(token: str, token_file: str, credentials_directory: str) -> CredentialSource:
    """The source for `--auth token`: the token, else the file, else systemd's credential `agent-token`.

    Files are read once here, so that a mistake ends the start and not only the first dial. Raises `IdentityError`.
    """
    if token:
        return FixedToken(token)
    if token_file:
        remedy = "CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set for token auth"
        file = FileToken(token_file, "token file", remedy)
    elif credentials_directory:
        path = os.path.join(credentials_directory, SYSTEMD_CREDENTIAL)
        remedy = f"the unit needs LoadCredential={SYSTEMD_CREDENTIAL}:PATH, or set CODER_AGENT_TOKEN_FILE"
        file = FileToken(path, "systemd credential", remedy)
    else:
        raise IdentityError("Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set")
    file.read()
    return file


def _read_regular_file(path: str, limit: int) -> bytes | None:
    """At most `limit` bytes of the file; None when it is a pipe or the like, whose content could be had only once."""
    # Opening a FIFO would wait for a writer without O_NONBLOCK.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return os.read(descriptor, limit)  # says EISDIR of a directory
        return None
    finally:
        os.close(descriptor)


def checked_token(text: str, name: str) -> str:
    """The token in `text`, trimmed. Raises `IdentityError`, which calls it `name`."""
    token = text.strip()
    if not token:
        raise IdentityError(f"{name}: it is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise IdentityError(f"{name}: it is no token: it must be one word of plain characters")
    return token
