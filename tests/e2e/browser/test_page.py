"""The page around the terminals: logging in, the list, one agent, a new agent; for every eye, hand and screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.browser.place import WEB, WORK, Place, Terminal

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

SLOW = """\
scripts:
  - display_name: Set up
    run_on_start: true
    script: for part in 1 2 3 4 5 6; do echo "part $part of 6"; sleep 0.5; done; exit 3
"""
MISTAKEN = """\
name: mistaken
scripts:
  - display_name: Hello
    script: echo hello
    timeout: soon
    colour: green
"""
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "light"},
}
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"


async def test_in_by_a_link_and_out_again(place: Place) -> None:
    link = (await place.running.request("POST", "users/me/login-links"))["url"]
    page = await place.window(logged_in=False)
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await expect(page).to_have_title("Log in · workspace-agent")
    await page.goto(link)
    await expect(page.get_by_role("heading", name="Agents")).to_be_visible()
    assert page.url == place.running.url + "/"
    kept = next(cookie for cookie in await page.context.cookies() if cookie["name"] == "coder_session_token")
    assert kept["httpOnly"]
    assert kept["sameSite"] == "Lax"

    await page.goto(link)
    await expect(page.get_by_text("This link was used before or has expired")).to_be_visible()
    await page.get_by_role("link").click()
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    # The session has ended at the server, too, not only in this browser.
    await page.context.add_cookies([kept])  # type: ignore[list-item] # what was got may be given
    await page.reload()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await page.get_by_label("E-mail").fill("owner@localhost.invalid")
    await page.get_by_label("Password").fill("not the password")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_contain_text("Incorrect email or password.")


async def test_an_agent_is_made_started_and_watched_as_its_start_script_runs(place: Place) -> None:
    page = await place.window()
    await page.get_by_role("link", name=re.compile("New agent|Create the first one")).click()
    editor = page.get_by_label("Definition of the agent, YAML or JSON")
    await editor.fill(MISTAKEN)
    await page.get_by_role("button", name="Create").click()
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("line 5")
    await expect(alert).to_contain_text("line 6")
    await expect(page.locator(".gutter .mistake")).to_have_text(["5", "6"])
    await place.picture(page, "mistakes")
    selected = "area => area.value.slice(area.selectionStart, area.selectionEnd)"
    await alert.get_by_role("button", name="line 6").click()
    assert await editor.evaluate(selected) == "    colour: green"

    await editor.fill(f"name: made\n{SLOW}")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("heading", name="made is created")).to_be_visible()
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_role("button", name="Copy: Launch by Shell").click()
    await expect(page.get_by_role("button", name="Copy: Launch by Shell")).to_have_text("Copied")
    commands = await page.evaluate("navigator.clipboard.readText()")
    token = re.search(r"CODER_AGENT_TOKEN='(\S+)'", commands)
    assert token is not None
    assert f"CODER_AGENT_URL='{place.running.url}'" in commands
    for kind in ("systemd", "Docker", "Terraform"):
        await page.get_by_role("tab", name=kind).click()
        await expect(page.get_by_label(f"Launch by {kind}", exact=True)).to_contain_text(token[1])
    await place.picture(page, "launch")

    await page.get_by_role("link", name="Go to the agent").click()
    await expect(page.get_by_text("The agent has not connected yet.")).to_be_visible()
    assert token[1] not in await page.content()
    # The list beside it follows, too.
    beside = await page.context.new_page()
    await beside.goto(place.running.url)
    row = beside.get_by_role("row").filter(has_text="made")
    await expect(row).to_contain_text("connecting")
    await place.adopt("made", token[1])
    await expect(row).to_contain_text("starting")

    await expect(page.locator(".heading .state")).to_have_text("starting")
    await expect(page.get_by_role("row").filter(has_text="Set up")).to_contain_text("running")
    await page.get_by_role("button", name="Logs").click()
    lines = page.locator(".line .output")
    await expect(lines.filter(has_text="part 2 of 6")).to_be_visible()
    await expect(page.locator(".heading .state")).to_have_text("starting")
    await expect(lines.filter(has_text="part 6 of 6")).to_be_visible()
    await expect(page.locator(".heading .state")).to_have_text("start error")
    await page.get_by_role("button", name="Overview").click()
    await expect(page.get_by_role("row").filter(has_text="Set up")).to_contain_text("failed (exit code 3), 3")
    await expect(row).to_contain_text("start error")


async def test_an_agent_is_stopped_and_deleted_after_a_question(place: Place) -> None:
    created = await place.start_agent("doomed")
    page = await place.window(f"/agents/{created.id}")
    await page.get_by_role("button", name="Overview").click()
    await page.get_by_role("button", name="Stop …").click()
    question = page.get_by_role("dialog")
    await expect(question).to_contain_text("Stop doomed?")
    await page.keyboard.press("Escape")
    await expect(question).to_have_count(0)
    await page.get_by_role("button", name="Stop …").click()
    await question.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("status").filter(has_text="stop it in its workspace now")).to_be_visible()
    assert await place.agent.stop(30) == 0
    await expect(page.locator(".heading .state")).to_have_text("off")
    await expect(page.get_by_text("This workspace is stopped.")).to_be_visible()
    await place.picture(page, "stopped")
    await page.get_by_role("button", name="Delete …").click()
    await question.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("heading", name="Agents")).to_be_visible()
    await expect(page.get_by_text("doomed")).to_have_count(0)


@pytest.mark.spec("tailnet", 62)
async def test_a_port_that_listens_opens_on_an_origin_of_its_own(place: Place) -> None:
    (place.directory / "index.html").write_text("<h1>Hello from the workspace</h1>")
    created = await place.start_agent("ports")
    terminal = await place.terminal()
    port_file = place.directory / "port"
    await terminal.type(
        f"cd {place.directory}; python3 -u -m http.server --bind 127.0.0.1 0 | tee {port_file}\n",
    )
    port = (await terminal.shows(r"port (\d+)"))[1]
    page = await place.window(f"/agents/{created.id}")
    await page.get_by_role("button", name="Overview").click()
    async with page.expect_popup() as opening:
        await page.get_by_role("region", name="Open ports").get_by_text(port, exact=True).click()
    opened = await opening.value
    await expect(opened.get_by_role("heading")).to_have_text("Hello from the workspace")
    assert not opened.url.startswith(place.running.url)
    assert await opened.evaluate("document.cookie") == ""
    assert await opened.evaluate("window.opener") is None


async def test_a_page_from_elsewhere_opens_no_terminal(place: Place) -> None:
    created = await place.start_agent("guarded")
    context = await place.context()
    page = await context.new_page()
    # Another site to the server, the same to the cookie: browsers send it along.
    await context.route("http://127.0.0.1:1/*", lambda route: route.fulfill(body="<p>elsewhere</p>"))
    await page.goto("http://127.0.0.1:1/")
    socket = f"{place.running.url.replace('http', 'ws')}/api/v2/workspaceagents/{created.id}/pty"
    attempt = """url => new Promise(done => {
        const socket = new WebSocket(url);
        socket.onopen = () => done("open");
        socket.onerror = () => done("refused");
    })"""
    query = "?reconnect=3b579bf4-1ed8-4b99-87a8-e9a1e3410410&height=24&width=80"
    assert await page.evaluate(attempt, socket + query) == "refused"
    await page.goto(place.running.url)
    assert await page.evaluate(attempt, socket + query) == "open"


async def test_everything_is_reached_by_keyboard(place: Place) -> None:
    await place.start_agent("keys", WORK)
    page = await place.window()
    await expect(page.get_by_role("link", name="keys")).to_be_visible()
    await _tab_to(page, "keys")
    await page.keyboard.press("Enter")
    await expect(page.locator(".status.open")).to_be_visible()
    # The terminal has the focus, takes the tabulator, and lets go when told.
    await page.keyboard.type("echo by$((1 + 1))keyboard\n")
    await expect(page.locator(".xterm-rows")).to_contain_text("by2keyboard")
    await page.keyboard.press("Tab")
    assert await _focused(page) == "Terminal input"
    await page.keyboard.press("Shift+Escape")
    assert await _focused(page) == "Search"
    await page.keyboard.press("Shift+Tab")
    assert await _focused(page) == "New terminal"
    await _tab_to(page, "Logs", back=True)
    await page.keyboard.press("Enter")
    await expect(page.locator(".line").filter(has_text="part 3 of 3")).to_be_visible()
    await _tab_to(page, "Lines; Enter shows one as a whole, the arrows go on from it")
    await page.keyboard.press("Enter")
    whole = page.get_by_role("region", name="The whole line")
    last = await whole.locator("pre").text_content()
    await page.keyboard.press("ArrowUp")
    await expect(whole.locator("pre")).not_to_have_text(last or "")
    await page.keyboard.press("Escape")
    await expect(whole).to_have_count(0)
    await _tab_to(page, "Overview", back=True)
    await page.keyboard.press("Space")
    await _tab_to(page, "Delete …")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    # What cannot be taken back is not what Enter does.
    assert await _focused(page) == "Cancel"
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("screen", SCREENS)
async def test_every_view_is_readable_for_all_and_fits_the_screen(place: Place, screen: str) -> None:
    created = await place.start_agent(f"view-{screen}", WORK)
    missing = await place.running.create_agent(f"name: away-{screen}\n")
    context = await place.context(**SCREENS[screen])
    await context.add_init_script(path=_axe())
    page = await context.new_page()

    async def look(name: str) -> None:
        found = await page.evaluate(
            """async () => (await axe.run(document, {
                // xterm.js draws its lines twice; the ones for the eye are hidden from others.
                exclude: [[".xterm"]],
                runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
            })).violations.map(({ id, nodes }) => `${id}: ${nodes.map(node => node.html.slice(0, 200))}`)"""
        )
        assert found == [], name
        width = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], f"{name} is wider than the screen"
        await place.picture(page, f"{screen}-{name}")

    await page.goto(place.running.url)
    await expect(page.get_by_role("row").filter(has_text=created.name)).to_contain_text("ready")
    await look("agents")
    await page.goto(f"{place.running.url}/new")
    await page.get_by_label("Definition of the agent, YAML or JSON").fill(MISTAKEN)
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    await look("new")
    await page.goto(f"{place.running.url}/agents/{missing.id}")
    await expect(page.get_by_text("The agent has not connected yet.")).to_be_visible()
    await page.get_by_role("button", name="New token …").click()
    await page.get_by_role("dialog").get_by_role("button", name="Make a new token").click()
    await expect(page.get_by_role("region", name="Launch")).to_be_visible()
    await look("launch")
    await page.goto(f"{place.running.url}/agents/{created.id}")
    terminal = Terminal(page)
    await terminal.connected()
    await expect(page.locator(".path")).to_contain_text(re.compile(r"(direct|relayed).* ms"))
    await page.keyboard.type(
        "ls --color=always -d /etc /bin /tmp /dev/null; printf '\\e[1;31mred \\e[32mgreen\\e[m\\n'\n"
    )
    await terminal.shows("^red green")
    await look("terminal")
    await page.get_by_role("button", name="Overview").click()
    await expect(page.get_by_role("row").filter(has_text="Broken")).to_contain_text("exit code 3")
    await expect(page.locator(".metadata .graph")).to_be_visible()
    await look("overview")
    await page.get_by_role("button", name="Delete …").click()
    await look("question")
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Logs").click()
    await expect(page.locator(".line").first).to_be_visible()
    await look("logs")
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await look("login")


def _axe() -> Path:
    assert AXE.is_file(), f"{AXE} is missing: python scripts/build_page.py brings it"
    return AXE


async def _focused(page: Page) -> str:
    return str(
        await page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim() || ''")
    )


async def _tab_to(page: Page, name: str, *, back: bool = False) -> None:
    """Press the tabulator until the element with that name has the focus."""
    seen = []
    for _ in range(40):
        await page.keyboard.press("Shift+Tab" if back else "Tab")
        seen.append(await _focused(page))
        if seen[-1] == name:
            return
    raise AssertionError(f"no {name!r} among {seen}")
