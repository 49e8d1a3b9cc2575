"""A deployment, an agent in it, and what a person does with the page in a real browser."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component

LOOK_AGAIN = 0.05
PATIENCE = 20_000
"""Milliseconds that anything on the page may take: the machine may be busy with other things."""
COOKIE = "coder_session_token"
WEB = Path(__file__).resolve().parents[3] / "web"

WORK = """\
scripts:
  - display_name: Set up
    run_on_start: true
    script: for part in 1 2 3; do echo "part $part of 3"; sleep 0.2; done
  - display_name: Broken
    cron: "* * * * * *"
    script: echo cannot at $(date +%s) >&2; exit 3
metadata:
  - {display_name: Counter, key: counter, script: 'date +%s', interval: 1}
apps:
  - {slug: docs, display_name: Docs, url: "https://docs.invalid/", external: true}
"""


def program(package: str, *names: str) -> str:
    """The path of the first of these programs that is there. Skips where there is none, and fails there in CI."""
    for name in names:
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"no {names[0]} here: Debian's package {package} brings it")
    pytest.skip(f"no {names[0]} here: Debian's package {package} brings it")


expect.set_options(timeout=PATIENCE)


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    path = program("chromium", "chromium", "chromium-browser", "google-chrome")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--enable-precise-memory-info"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Place:
    """One test's agents and windows. `pictures` is where screenshots are kept."""

    browser: Browser
    running: Deployment
    pictures: Path
    directory: Path
    agents: list[tuple[CreatedAgent, Component]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What went wrong in the pages: exceptions that nobody caught, and what their policy forbade."""
    contexts: list[BrowserContext] = field(default_factory=list)

    @property
    def created(self) -> CreatedAgent:
        return self.agents[-1][0]

    @property
    def agent(self) -> Component:
        return self.agents[-1][1]

    async def start_agent(self, name: str, rest: str = "") -> CreatedAgent:
        """An agent that is ready; `rest` of its definition as YAML."""
        created = await self.running.create_agent(f"name: {name}\n{rest}")
        agent = self.running.agent(created, environment={"SHELL": "/bin/sh"})
        self.agents.append((created, agent))
        await agent.start()
        await self.running.wait_for(created, 30, lifecycle_state={"ready"})
        return created

    async def adopt(self, name: str, token: str) -> None:
        """Start the agent that the page has made."""
        found = await self.running.request("GET", f"agents/{name}")
        path = self.directory / "token"
        path.write_text(token)
        created = CreatedAgent(found["id"], name, path)
        agent = self.running.agent(created, environment={"SHELL": "/bin/sh"})
        self.agents.append((created, agent))
        await agent.start()

    async def remove_agents(self) -> None:
        """Stops them, with their shells, and deletes those that the test has not deleted."""
        for created, agent in self.agents:
            if agent.running:
                await agent.stop(30)
            kept = await self.running.request("GET", "agents")
            if created.id in [found["id"] for found in kept["agents"]]:
                await self.running.request("DELETE", f"agents/{created.id}")

    async def context(self, *, logged_in: bool = True, **options: Any) -> BrowserContext:
        """A browser of its own, as far as the page can see."""
        context = await self.browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.on("console", lambda said: self._heard(said.type, said.text))
        if logged_in:
            host = urlsplit(self.running.url).hostname or ""
            # A session of its own, which it may end.
            token = (await self.running.request("POST", "users/me/keys"))["key"]
            await context.add_cookies([{"name": COOKIE, "value": token, "domain": host, "path": "/"}])
        return context

    async def window(self, path: str = "/", **options: Any) -> Page:
        """The page at `path` in a browser of its own."""
        page = await (await self.context(**options)).new_page()
        await page.goto(self.running.url + path)
        return page

    async def terminal(self, context: BrowserContext | None = None, path: str = "", **options: Any) -> Terminal:
        """The page of the agent with its terminal open."""
        page = await (context or await self.context(**options)).new_page()
        await page.goto(self.running.url + (path or f"/agents/{self.created.id}"))
        terminal = Terminal(page)
        await terminal.connected()
        return terminal

    async def picture(self, page: Page, name: str) -> None:
        await page.screenshot(path=self.pictures / f"{name}.png")

    def _heard(self, kind: str, text: str) -> None:
        if kind == "error" and "Content Security Policy" in text:
            self.faults.append(text)


class Terminal:
    """The terminal that is shown on a page. Its text is read from the lines that xterm.js draws as elements; it draws
    them so where there is no graphics hardware."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.view = page.locator(".terminal:visible")
        self.lines = self.view.locator(".xterm-rows")

    async def connected(self) -> None:
        await expect(self.view.locator(".status.open")).to_be_visible(timeout=PATIENCE)
        # The shell has said something.
        await self.shows(r"\S")

    async def shows(self, pattern: str, seconds: float = PATIENCE / 1000) -> re.Match[str]:
        """The first match in the lines that are shown, as soon as there is one; `^` and `$` are a line's ends."""
        expression = re.compile(pattern, re.M)
        ends = time.monotonic() + seconds
        while True:
            shown = "\n".join(await self.text())
            if found := expression.search(shown):
                return found
            assert time.monotonic() < ends, f"after {seconds:g} s there is no {pattern!r} in:\n{shown}"
            await asyncio.sleep(LOOK_AGAIN)

    async def type(self, text: str) -> None:
        await self.page.keyboard.type(text)

    async def becomes(self, right: Callable[[list[str]], bool]) -> None:
        """Until the rows on the screen are right."""
        ends = time.monotonic() + PATIENCE / 1000
        while not right(rows := await self.text()):
            assert time.monotonic() < ends, "\n".join(["it stays:", *rows])
            await asyncio.sleep(LOOK_AGAIN)

    async def run(self, command: str, pattern: str) -> re.Match[str]:
        await self.type(command + "\n")
        return await self.shows(pattern)

    async def text(self) -> list[str]:
        """The rows on the screen without their trailing blanks."""
        rows = await self.lines.evaluate("lines => [...lines.children].map(row => row.textContent)")
        return [row.replace("\xa0", " ").rstrip() for row in cast(list[str], rows)]

    async def cursor(self) -> tuple[int, int]:
        """Row and column in characters."""
        found = await self.lines.evaluate(
            """lines => {
                const cursor = lines.querySelector(".xterm-cursor");
                const row = cursor.parentElement;
                let column = 0;
                for (const piece of row.childNodes) {
                    if (piece === cursor) break;
                    column += piece.textContent.length;
                }
                return [[...lines.children].indexOf(row), column];
            }"""
        )
        return cast(tuple[int, int], tuple(found))
