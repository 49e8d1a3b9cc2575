"""Terminals on the page."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from playwright.async_api import expect

from tests.e2e.browser.place import Place, program

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

PROMPT = r"[#$]\s*\Z"
OUTAGE = 10.0
"""Seconds."""
FLOOD = 20.0
"""Seconds."""
MAX_HEAP = 200e6
MIB = 1024 * 1024


@pytest.mark.spec("terminal-ssh-http", 18)
async def test_a_terminal_shows_the_same_after_a_reload_and_follows_the_window(place: Place) -> None:
    await place.start_agent("reload")
    terminal = await place.terminal()
    await terminal.run("echo from$((40 + 2)) before", r"from42 before")
    await terminal.run("kept=yes", r"kept=yes")
    before = await terminal.text()
    await terminal.page.reload()
    await terminal.connected()
    await terminal.shows("from42 before")
    assert await terminal.text() == before
    before_resize = await terminal.run("echo $kept-$kept; stty size", r"^yes-yes\n(\d+) (\d+)$")

    await terminal.run("trap 'echo now $(stty size)' WINCH", "WINCH")
    await terminal.page.set_viewport_size({"width": 800, "height": 500})
    await terminal.type("\n")
    now = await terminal.shows(r"now (\d+) (\d+)$")
    assert all(int(new) < int(old) for new, old in zip(now.groups(), before_resize.groups(), strict=True))
    assert int(now[1]) == len(await terminal.text())

    await terminal.type("exit\n")
    await expect(terminal.view.locator(".status.ended")).to_contain_text("The shell has ended.")


async def test_full_screen_programs_look_the_same_after_a_reload(place: Place) -> None:
    program("vim", "vim")
    program("procps", "top")
    (place.directory / "notes.txt").write_text("".join(f"note {number}\n" for number in range(200)))
    await place.start_agent("full-screen")
    terminal = await place.terminal()
    await terminal.type(f"vim -u NONE -N {place.directory}/notes.txt\n")
    await terminal.shows("note 20")
    await terminal.type(":set number ruler\n120G$")
    await terminal.shows(r"120 note 119$[^~]*120,8")
    before, cursor = await terminal.text(), await terminal.cursor()
    await place.picture(terminal.page, "vim")
    await terminal.page.reload()
    await terminal.connected()
    # It is made to draw again, and forgets what its last line said.
    await terminal.becomes(lambda rows: rows[:-1] == before[:-1] and "120,8" in rows[-1])
    assert await terminal.cursor() == cursor
    await terminal.type("Achanged")
    await terminal.page.keyboard.press("Escape")
    await terminal.type(":q!\n")
    await terminal.shows(PROMPT)  # it throws away what was typed before
    await terminal.run("echo left $?", "^left 0")

    await terminal.type("clear; TERM=xterm-256color top -d 100\n")
    await terminal.shows(r"^top - [^~]*PID USER.*COMMAND")
    before = await terminal.text()
    await terminal.page.reload()
    await terminal.connected()
    await terminal.shows(r"^top - [^~]*PID USER.*COMMAND")
    again = await terminal.text()
    heads = [[(row, line.split()[0]) for row, line in enumerate(rows) if re.match("top|Tasks|MiB| +PID", line)]
             for rows in (before, again)]  # fmt: skip
    assert heads[0] == heads[1]
    assert len(heads[0]) >= 5
    await terminal.type("q")
    await terminal.shows(PROMPT)
    await terminal.run("echo left $?", "^left 0")


async def test_two_windows_show_one_shell(place: Place) -> None:
    await place.start_agent("shared")
    one = await place.terminal()
    await one.run("echo $((6 * 7))-one", "42-one")
    two = await place.terminal(path=one.page.url.removeprefix(place.running.url))
    await two.shows("42-one")
    await two.run("echo $((6 * 7))-two", "42-two")
    await one.shows("42-two")
    # A second terminal of the same window is another shell.
    await one.page.get_by_role("button", name="New terminal").click()
    await one.connected()
    await one.run("echo $((6 * 7))-three", "42-three")
    assert "42-two" not in "".join(await one.text())
    await expect(one.page.locator(".tab")).to_have_count(2)
    await one.page.locator(".tab .name").first.click()
    await one.shows("42-two")


@pytest.mark.spec("tailnet", 62)
async def test_the_first_click_reaches_the_agent_at_once(place: Place) -> None:
    await place.start_agent("first-click")
    began = time.monotonic()
    await place.terminal()
    assert time.monotonic() - began < 5


async def test_nothing_typed_is_lost_while_the_server_is_away_and_shells_outlive_their_agent(place: Place) -> None:
    await place.start_agent("outage")
    terminal = await place.terminal()
    shell = (await terminal.run("echo pid $$", r"^pid (\d+)$"))[1]

    await place.running.server.kill()
    await expect(terminal.view.locator(".status.waiting, .status.connecting")).to_be_visible()
    ends = time.monotonic() + OUTAGE
    for number in range(20):
        await terminal.type(f"echo $((100 + {number}))-typed\n")
        await asyncio.sleep(max(0, (ends - time.monotonic()) / (20 - number)))
    await expect(terminal.page.get_by_text("What you type is kept and sent later.")).to_be_visible()
    await place.picture(terminal.page, "server-away")
    await place.running.start_server()
    await terminal.connected()
    await terminal.shows("119-typed")
    answers = [line for line in await terminal.text() if re.fullmatch(r"1\d\d-typed", line)]
    shown = [f"{100 + number}-typed" for number in range(20)]
    assert answers == shown[-len(answers) :]
    assert len(answers) >= 10

    await place.agent.kill()
    await place.agent.start()
    await terminal.type("clear; echo still $$\n")
    await terminal.shows(rf"^still {shell}$", 40)
    await terminal.connected()


async def test_a_flood_of_output_leaves_the_page_quick_and_small(place: Place) -> None:
    await place.start_agent("flood")
    terminal = await place.terminal()
    await terminal.type("yes a flood of output that does not end by itself\n")
    await terminal.shows("a flood of output")
    ends = time.monotonic() + FLOOD
    highest = 0.0
    slowest = 0.0
    while time.monotonic() < ends:
        began = time.monotonic()
        heap = await terminal.page.evaluate("performance.memory.usedJSHeapSize")
        slowest = max(slowest, time.monotonic() - began)
        highest = max(highest, float(heap))
        await asyncio.sleep(0.5)
    began = time.monotonic()
    await terminal.page.keyboard.press("Control+c")
    await terminal.shows(r"\^C")
    took = time.monotonic() - began
    await terminal.run("echo $((6 * 7))-after", "42-after")
    assert took < 2
    assert slowest < 2
    assert highest < MAX_HEAP


async def test_a_phone_has_the_keys_that_its_keyboard_lacks(place: Place) -> None:
    await place.start_agent("phone")
    terminal = await place.terminal(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = terminal.page
    keys = page.get_by_role("group", name="Keys")
    await terminal.type("echo one$((1 + 1))")
    await terminal.page.keyboard.press("Enter")
    await terminal.shows("one2")
    await keys.get_by_role("button", name="Up").tap()
    await terminal.shows(r"^one2\n.*echo one\$\(\(1 \+ 1\)\)$")
    await page.keyboard.press("Enter")
    await terminal.run("cat", r"cat$")
    await keys.get_by_role("button", name="Esc").tap()
    await terminal.shows(r"\^\[")
    await keys.get_by_role("button", name="Ctrl").tap()
    await terminal.type("c")
    await terminal.shows(r"\^C")
    await terminal.run("echo ended $?", "ended 130")
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    await place.picture(page, "phone-terminal")


async def test_a_terminal_is_drawn_by_graphics_hardware_where_there_is_some(place: Place) -> None:
    await place.start_agent("hardware")
    context = await place.context()
    # This browser computes its graphics, which the page would not use.
    await context.add_init_script(
        """const real = WebGL2RenderingContext.prototype.getParameter;
        WebGL2RenderingContext.prototype.getParameter = function (name) {
            const value = real.call(this, name);
            return typeof value === "string" ? value.replace(/swiftshader|llvmpipe|software/gi, "hardware") : value;
        };"""
    )
    page = await context.new_page()
    await page.goto(f"{place.running.url}/agents/{place.created.id}")
    await expect(page.locator(".status.open")).to_be_visible()
    await expect(page.locator(".xterm-screen canvas").first).to_be_visible()
    # Its context may be taken away at any time.
    await page.evaluate(
        """() => {
            for (const canvas of document.querySelectorAll(".xterm-screen canvas"))
                canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
        }"""
    )
    await page.keyboard.type("echo $((6 * 7))-plain\n")
    await expect(page.locator(".xterm-rows")).to_contain_text("42-plain", timeout=20_000)
