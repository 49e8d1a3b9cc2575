"""An Agent API that remembers what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from google.protobuf.message import Message

from agent.api.methods import Request, Response, RpcMethod
from agent.api.versions import CURRENT, ApiVersion


class FakeApi:
    """`replies` are given one after another: an exception is raised, a message answered; then empty answers."""

    def __init__(self, *replies: Exception | Message) -> None:
        self.version: ApiVersion = CURRENT
        self.replies = list(replies)
        self.requests: list[Any] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.called: Callable[[], None] = lambda: None

    async def call(
        self, method: RpcMethod[Request, Response], request: Request, *, timeout: float | None = None
    ) -> Response:
        kept = method.request()
        kept.CopyFrom(request)
        self.requests.append(kept)
        self.called()
        await self.hold.wait()
        reply = self.replies.pop(0) if self.replies else method.response()
        if isinstance(reply, Exception):
            raise reply
        return cast(Response, reply)

    async def call_encoded(
        self, method: RpcMethod[Request, Response], request: bytes, *, timeout: float | None = None
    ) -> Response:
        return await self.call(method, method.request.FromString(request), timeout=timeout)
