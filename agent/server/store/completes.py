"""Writes that are not torn by cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def completes(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once called, the coroutine runs to its end; a caller that is cancelled meanwhile waits for that.

    An agent's connection may end, and cancel its handlers, at any await. A driver that is cancelled between BEGIN and
    COMMIT gives up its connection without a rollback, and SQLite's only write lock stays with it.
    """

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(function(*args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # nobody is left to be told
            raise

    return run
