"""One browser and one server for all tests here, which share their event loop; each test has agents of its own.

Screenshots are kept in the directory that `WORKSPACE_AGENT_SCREENSHOTS` names, else in pytest's temporary one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from agent.testing.deployment import Deployment
from tests.e2e.browser.place import Place, open_browser


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("WORKSPACE_AGENT_SCREENSHOTS")
    if not wanted:
        return tmp_path_factory.mktemp("screenshots")
    Path(wanted).mkdir(parents=True, exist_ok=True)
    return Path(wanted)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """A test that stops the server starts it again."""
    async with Deployment(tmp_path_factory.mktemp("deployment")) as deployment:
        yield deployment


@pytest_asyncio.fixture(loop_scope="session")
async def place(
    browser: Browser, running: Deployment, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Place]:
    """Fails the test when a page had an exception that nobody caught, or did what its policy forbids."""
    made = Place(browser, running, pictures, tmp_path)
    try:
        yield made
    finally:
        for context in made.contexts:
            for number, page in enumerate(context.pages):
                await page.screenshot(path=pictures / f"end-of-{request.node.name}-{number}.png")
            await context.close()
        await made.remove_agents()
    assert not made.faults
