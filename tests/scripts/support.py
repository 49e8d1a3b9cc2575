"""Stand-ins for the rooms around the scripts room."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import structlog  # noqa: F401  # as in the daemon it is there before anything runs; importing it would block the loop

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb


def script(text: str = "", **more: object) -> Script:
    return Script(id=uuid4(), log_source_id=uuid4(), text=text, **more)  # type: ignore[arg-type]


@dataclass
class PipeCapture:
    """Reads both pipes on the loop, keeps what came and writes it to the log file."""

    log_fd: int | None
    fds: tuple[int | None, int | None]
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    notes: list[str] = field(default_factory=list)
    eof: asyncio.Event = field(default_factory=asyncio.Event)
    finished: int = 0
    _open: dict[int, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for fd, sink in zip(self.fds, (self.stdout, self.stderr), strict=True):
            if fd is not None:
                self._open[fd] = sink
                asyncio.get_running_loop().add_reader(fd, self._read, fd)
        if not self._open:
            self.eof.set()

    async def wait_eof(self) -> None:
        await self.eof.wait()

    def note(self, text: str) -> None:
        self.notes.append(text)

    async def finish(self) -> None:
        self.finished += 1
        for fd in list(self._open):
            self._close(fd)
        if self.log_fd is not None:
            os.close(self.log_fd)
            self.log_fd = None

    def _read(self, fd: int) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(fd, 65536)
            if not data:
                self._close(fd)
                return
        self._open[fd].extend(data)
        if self.log_fd is not None:
            os.write(self.log_fd, data)

    def _close(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        del self._open[fd]
        if not self._open:
            self.eof.set()


class PipeCaptures:
    """Makes `PipeCapture`s and remembers everything."""

    def __init__(self) -> None:
        self.by_source: dict[UUID, list[PipeCapture]] = {}
        self.run_ids: list[UUID] = []
        self.notes: list[tuple[UUID, int, str]] = []

    def start(
        self, run_id: UUID, source_id: UUID, log_fd: int | None, stdout_fd: int | None, stderr_fd: int | None
    ) -> PipeCapture:
        capture = PipeCapture(log_fd, (stdout_fd, stderr_fd))
        self.run_ids.append(run_id)
        self.by_source.setdefault(source_id, []).append(capture)
        return capture

    def note(self, source_id: UUID, level: int, text: str) -> None:
        self.notes.append((source_id, level, text))

    def of(self, script: Script) -> PipeCapture:
        return self.by_source[script.log_source_id][-1]

    def errors(self, script: Script) -> list[str]:
        return [text for source, level, text in self.notes if source == script.log_source_id and level == pb.Log.ERROR]


@dataclass
class Context:
    """Commands run with /bin/sh in `cwd`."""

    cwd: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"], "FROM_CONTEXT": "yes"})

    def environment(self) -> dict[str, str]:
        return dict(self.variables)

    def shell(self) -> str:
        return "/bin/sh"

    def directory(self) -> str:
        return str(self.cwd)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait in real time until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
