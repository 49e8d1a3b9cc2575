"""Banners (agent-api.md §8.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.deployment import Deployment, deployment

PATH = "/api/v2/appearance"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(database_url, tmp_path) as running:
        yield running


async def test_set_and_read(server: Deployment) -> None:
    assert await server.call("GET", PATH, token="") == {"announcement_banners": []}
    banners = [{"enabled": True, "message": "Maintenance at noon", "background_color": "#ff0000"}]
    assert await server.call("PUT", PATH, json={"announcement_banners": banners}) == {"announcement_banners": banners}
    assert await server.call("GET", PATH, token="") == {"announcement_banners": banners}
    assert await server.call("PUT", PATH, json={}) == {"announcement_banners": []}


async def test_only_owners_set(server: Deployment) -> None:
    await server.call("PUT", PATH, token=await server.new_member("mia"), json={}, expect=403)
    await server.call("PUT", PATH, token="", json={}, expect=401)


async def test_mistakes_are_named(server: Deployment) -> None:
    banners = [{"message": "x" * 5000, "background_color": "red"}]
    refused = await server.call("PUT", PATH, json={"announcement_banners": banners}, expect=400)
    assert [mistake["field"] for mistake in refused["validations"]] == [
        "announcement_banners[0].message",
        "announcement_banners[0].background_color",
    ]
    await server.call("PUT", PATH, json={"announcement_banners": [{}] * 21}, expect=400)
