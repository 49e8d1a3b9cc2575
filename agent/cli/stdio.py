"""Joins standard input and output with a connection to an agent: what `ssh --stdio` is as a ProxyCommand."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK: Final = 262_144


class Stream(Protocol):
    """The connection, as far as it is needed here; `agent.tailnet.streams.TailnetStream`."""

    async def read(self, limit: int = ...) -> bytes: ...
    async def write(self, data: bytes | memoryview) -> None: ...
    def shutdown_write(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class OutputGoneError(Exception):
    """Nobody reads our standard output any more."""


async def join(stream: Stream, source: int, sink: int) -> None:
    """Copy both ways until the agent ends the connection: `source` to it, and what it sends to `sink`.

    The end of `source` is passed on, and what the agent still sends is written. Both are file descriptors of any kind;
    they do not block meanwhile, and are afterwards as they were. Raises `TcpError` when the connection breaks and
    `OutputGoneError` when the reader of `sink` has gone; the agent is told of both, and of a cancellation, by a reset.
    """
    whole = False
    with _not_blocking(source), _not_blocking(sink):
        sending = asyncio.create_task(_send(stream, source), name="standard input")
        receiving = asyncio.create_task(_receive(stream, sink), name="standard output")
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                sending.result()
            await receiving
            whole = True
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
            if whole:
                stream.close()
            else:
                stream.abort()


async def _send(stream: Stream, source: int) -> None:
    while data := await _read(source):
        await stream.write(data)
    stream.shutdown_write()


async def _receive(stream: Stream, sink: int) -> None:
    while data := await stream.read(CHUNK):
        view = memoryview(data)
        while view:
            view = view[await _write(sink, view) :]


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:
            await _ready(descriptor, loop.add_reader, loop.remove_reader)
        except OSError:
            return b""  # a terminal that was hung up, a peer that reset: there is no more input


async def _write(descriptor: int, data: memoryview) -> int:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            await _ready(descriptor, loop.add_writer, loop.remove_writer)
        except OSError as error:
            raise OutputGoneError(f"standard output: {error.strerror}") from error


async def _ready(
    descriptor: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool]
) -> None:
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


@contextmanager
def _not_blocking(descriptor: int) -> Iterator[None]:
    """The mode belongs to the open file, which the shell that started us may share: it is put back."""
    blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            os.set_blocking(descriptor, blocking)
