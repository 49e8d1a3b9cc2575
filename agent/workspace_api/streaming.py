"""Files are read and written in threads, and an answer is sent while it is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from aiohttp import web

logger = logging.getLogger("agent.workspace_api")
T = TypeVar("T")


async def in_thread(body: Callable[[], T]) -> T:
    """Run `body` in a thread and wait for its end also when cancelled: what it works on may then be closed."""
    working = asyncio.ensure_future(asyncio.to_thread(body))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


async def send(request: web.Request, response: web.StreamResponse, chunks: Iterator[bytes]) -> web.StreamResponse:
    """Send what a thread reads, a piece at a time.

    When reading fails half-way the connection is reset: an answer that just ended would look like a whole one.
    """
    await response.prepare(request)
    try:
        while (chunk := await in_thread(lambda: next(chunks, None))) is not None:
            await response.write(chunk)
    except ConnectionError:
        raise  # the client is gone
    except OSError as error:
        logger.warning("%s was cut short: %s", request.path, error)
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
