"""The page as it is served."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.server import page
from tests.server.deployment import Deployment, deployment


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(f"sqlite:///{tmp_path}/server.db", tmp_path, SystemClock()) as running:
        yield running


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A page that was built, in place of the one that may or may not be there."""
    (tmp_path / "web" / "assets").mkdir(parents=True)
    (tmp_path / "web" / "index.html").write_text("<!doctype html><p>the page</p>")
    (tmp_path / "web" / "assets" / "index-abc.js").write_text("let a = 1;" * 1000)
    monkeypatch.setattr(page, "files", lambda _package: tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["/", "/new", "/agents/some-name", "/agents/3b579bf4-1ed8-4b99-87a8-e9a1e3410410"])
async def test_the_page_is_the_same_at_each_of_its_addresses(server: Deployment, built: Path, path: str) -> None:
    async with server.http.get(server.url + path) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "the page" in await response.text()
        policy = response.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy


async def test_assets_are_kept_by_browsers_and_sent_compressed(server: Deployment, built: Path) -> None:
    async with server.http.get(server.url + "/assets/index-abc.js") as response:
        assert (response.status, response.headers["Content-Encoding"]) == (200, "deflate")
        assert response.content_type in ("text/javascript", "application/javascript")
        assert "immutable" in response.headers["Cache-Control"]
        assert await response.text() == "let a = 1;" * 1000


@pytest.mark.parametrize("name", ["index-abd.js", "..%2Findex.html", "%2e%2e%2f%2e%2e%2fpage.py", "index-abc.js%00"])
async def test_nothing_else_is_an_asset(server: Deployment, built: Path, name: str) -> None:
    async with server.http.get(f"{server.url}/assets/{name}") as response:
        assert response.status in (400, 404)


async def test_a_page_that_was_not_built_says_how_to_build_it(
    server: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "files", lambda _package: tmp_path)
    async with server.http.get(server.url) as response:
        assert response.status == 501
        assert re.search("python scripts/build_page.py", await response.text())
