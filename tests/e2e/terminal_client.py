"""A workspace of which only the shell is interesting, and a client of its terminals."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from agent.protocol.pty import Init, encode_request
from agent.terminal import TerminalService
from tests.terminal.support import MemoryStream


class Context:
    def __init__(self, directory: Path, shell: str = "/bin/bash", **variables: str) -> None:
        self._directory = directory
        self._shell = shell
        self._variables = variables

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._directory), "SECRET": "hunter2", **self._variables}

    def shell(self) -> str:
        return self._shell

    def directory(self) -> str:
        return str(self._directory)


class Client:
    """One attachment."""

    def __init__(self, service: TerminalService, init: Init, *, pieces: int = 1 << 20, then: bytes = b"") -> None:
        self.stream = MemoryStream()
        data = init.encode() + then
        for at in range(0, len(data), pieces):
            self.stream.say(data[at : at + pieces])
        self.served = asyncio.create_task(service.serve(self.stream))

    def type(self, text: str, rows: int = 0, columns: int = 0) -> None:
        self.stream.say(encode_request(text, rows, columns))

    async def until(self, text: str) -> str:
        return (await self.stream.until(text.encode())).decode(errors="replace")

    async def number(self, word: str) -> int:
        """The number that is shown behind `word`; the word itself may be shown before, as what was typed."""
        return int((await self.stream.match(re.compile(re.escape(word.encode()) + rb"(\d+)\r\n")))[1])

    async def detach(self) -> None:
        self.stream.leave()
        await self.served

    async def ended(self) -> str:
        """Everything that was shown, once the terminal has closed the connection."""
        async with asyncio.timeout(20):
            await self.served
        assert self.stream.closed
        return self.stream.shown.decode(errors="replace")
