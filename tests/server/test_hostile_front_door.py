"""Connections that make no request; `tests/e2e/test_hostile_http.py` has the same over sockets."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from agent.server.listening import FEW, FrontDoor


class Handler:
    """As much of aiohttp's protocol object as the front door uses."""

    def __init__(self) -> None:
        self.transport: object | None = object()

    def force_close(self) -> None:
        self.transport = None


class Request:
    def __init__(self, protocol: Handler) -> None:
        self.protocol = protocol


def front_door(most: int) -> FrontDoor:
    make: Any = Handler
    return FrontDoor(make, most)


async def make_request(door: FrontDoor, handler: Any) -> None:
    request: Any = Request(handler)

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response()

    await door.hear(request, answer)


async def test_the_silent_ones_make_way_for_others() -> None:
    door = front_door(1000)
    honest = door()
    await make_request(door, honest)
    flood = [door() for _ in range(10_000)]
    latest = door()
    assert honest.transport is not None
    assert latest.transport is not None
    assert door.silent <= 1000
    assert sum(handler.transport is not None for handler in flood) <= 1000
    assert door.displaced >= 9000
    assert flood[-1].transport is not None, "the oldest ones go first"


async def test_those_that_leave_are_not_held() -> None:
    door = front_door(1000)
    for _ in range(10_000):
        door().force_close()
        assert door.silent <= FEW
    assert door.displaced == 0


@pytest.mark.parametrize("most", [64, 1000])
async def test_those_that_speak_are_not_closed(most: int) -> None:
    door = front_door(most)
    spoken = []
    for _ in range(3000):
        spoken.append(handler := door())
        await make_request(door, handler)
    assert all(handler.transport is not None for handler in spoken)
    assert door.displaced == 0
