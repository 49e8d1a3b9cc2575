"""The log on the page."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.e2e.browser.place import Place

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

LINES = 100_000
MANY = f"""\
scripts:
  - display_name: Many
    run_on_start: true
    script: seq {LINES}
"""
MAX_HEAP = 200e6
USUAL_FRAME = 60
"""Milliseconds between two frames, of 95 % of them, while scrolling on a machine that does other things …"""
MAX_FRAME = 1000
"""… and of all."""

SCROLL = """async () => {
    const box = document.querySelector(".lines");
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    for (let step = 0; step < 120; step++) {
        // Small steps as a wheel makes them, and leaps as the bar allows.
        box.scrollTop = step % 10 ? box.scrollTop + 120 : Math.random() * box.scrollHeight;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times.sort((a, b) => a - b);
}"""


async def test_a_hundred_thousand_lines_stay_smooth(place: Place) -> None:
    created = await place.start_agent("many", MANY)
    page = await place.window(f"/agents/{created.id}")
    await page.get_by_role("button", name="Logs").click()
    count = page.locator(".count")
    await expect(count).to_have_text(f"{LINES:,} lines", timeout=60_000)
    last = page.locator(".line .output").last
    await expect(last).to_have_text(str(LINES))
    assert await page.locator(".line").count() < 200

    times = await page.evaluate(SCROLL)
    usual, worst = times[int(len(times) * 0.95)], times[-1]
    heap = await page.evaluate("performance.memory.usedJSHeapSize")
    assert heap < MAX_HEAP
    assert usual < USUAL_FRAME, times[-20:]
    assert worst < MAX_FRAME, times[-20:]

    # Scrolling up ends following, and what is sought is found at once.
    follow = page.get_by_label("Follow")
    await follow.check()
    await expect(last).to_have_text(str(LINES))
    await page.locator(".lines").evaluate("box => box.scrollTop = 0")
    await expect(follow).not_to_be_checked()
    await expect(page.locator(".line .output").first).to_have_text("1")
    found = sum("7777" in str(number) for number in range(1, LINES + 1))
    await page.get_by_label("Search the log").fill("7777")
    await expect(count).to_have_text(f"{found} of {LINES:,} lines")
    await page.get_by_label("Search the log").fill("")
    await page.get_by_label("Least level").select_option("error")
    await expect(count).to_have_text(f"0 of {LINES:,} lines")
    await page.get_by_label("Least level").select_option("trace")
    await page.get_by_label("Source").select_option("Many")
    await expect(count).to_have_text(f"{LINES:,} lines")
    async with page.expect_download() as loading:
        await page.get_by_role("link", name="Download").click()
    path = await (await loading.value).path()
    assert path.read_text().splitlines()[-1].endswith(str(LINES))
