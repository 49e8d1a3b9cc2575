from __future__ import annotations

import asyncio

import pytest

from agent.terminal.pty import PtyClosedError
from agent.terminal.session import NUDGE, UNSEEN_RATE, Limits, Session, State, Viewer
from agent.testing import ManualClock, settle
from tests.terminal.support import terminal

SMALL = Limits(history=100, staging=50)


async def shown(session: Session, viewer: Viewer) -> bytes:
    """Everything that there is for a viewer now."""
    result = b""
    while True:
        await settle()
        try:
            async with asyncio.timeout(0.01):
                data = await session.output(viewer)
        except TimeoutError:
            return result
        if not data:
            return result
        result += data
        session.sent(viewer, data)


async def test_the_first_viewer_sees_the_output_from_its_beginning(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        made.pty.print(b"before ")
        await settle()
        viewer = made.session.attach()
        made.pty.print(b"after")
        assert await shown(made.session, viewer) == b"before after"


async def test_a_later_viewer_gets_the_restored_screen_and_both_see_what_follows(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        first = made.session.attach()
        made.pty.print(b"\x1b[1mbold")
        await shown(made.session, first)
        second = made.session.attach()
        made.pty.print(b"more")
        assert await shown(made.session, second) == b"\x1bc\x1b[1mboldmore"
        assert await shown(made.session, first) == b"more"


@pytest.mark.spec("terminal-ssh-http", 6)
async def test_more_output_than_is_kept(clock: ManualClock) -> None:
    async with terminal(clock, Limits()) as made:
        first = made.session.attach()
        everything = b""
        for number in range(20_000):
            line = b"line %d\r\n" % number
            made.pty.print(line)
            everything += line
            if number % 100 == 0:
                await shown(made.session, first)
        await shown(made.session, first)
        made.session.detach(first)
        second = made.session.attach()
        made.pty.print(b"live")
        assert await shown(made.session, second) == b"\x1bc" + (everything + b"live")[-65536:]


@pytest.mark.spec("terminal-ssh-http", 10)
async def test_a_viewer_that_does_not_read_slows_nobody_and_is_cut_over(clock: ManualClock) -> None:
    async with terminal(clock, SMALL) as made:
        session = made.session
        slow, fast = session.attach(), session.attach()
        await shown(session, slow)
        await shown(session, fast)
        everything = b""
        for number in range(50):
            line = b"%d\r\n" % (number * 1111)
            assert made.pty.print(line) == len(line)
            everything += line
            assert await shown(session, fast) == line
        assert await shown(session, slow) == b"\x1bc" + everything[-100:]
        assert (slow.resyncs, fast.resyncs) == (1, 0)
        made.pty.print(b"live")
        assert (await shown(session, slow), await shown(session, fast)) == (b"live", b"live")


async def test_with_all_viewers_full_the_program_waits(clock: ManualClock) -> None:
    async with terminal(clock, Limits(history=1_000_000, staging=1000)) as made:
        viewers = [made.session.attach() for _ in range(2)]
        taken = 0
        for _ in range(100):
            taken += made.pty.print(b"x" * 400)
            await settle()
        assert made.ring.head == 1200  # what the viewers may be behind, and the rest of a read
        assert taken == 1200 + made.pty.ROOM
        assert await shown(made.session, viewers[0]) == b"x" * taken
        assert made.pty.reading


async def test_without_viewers_the_program_does_not_wait(clock: ManualClock) -> None:
    async with terminal(clock, SMALL) as made:
        for _ in range(100):
            assert made.pty.print(b"x" * 1000) == 1000
            await clock.advance(0.001)
        assert made.ring.head == 100_000


async def test_what_nobody_looks_at_is_read_at_a_bounded_rate_and_at_any_once_somebody_does(clock: ManualClock) -> None:
    async with terminal(clock, Limits()) as made:
        printed = 0

        async def print_all() -> None:
            """As much as is taken without a moment passing."""
            nonlocal printed
            while (taken := made.pty.print(b"y\r\n" * 1000)) > 0:
                printed += taken
                await settle()

        for _ in range(32):
            await print_all()
            await clock.advance(1 / 32)
        assert 0.9 * UNSEEN_RATE < printed < 1.1 * UNSEEN_RATE
        await print_all()
        before = made.ring.head
        viewer = made.session.attach()  # while it rests
        await settle()
        assert made.ring.head > before
        assert (await shown(made.session, viewer)).endswith(b"y\r\ny")
        for _ in range(100):  # no rest for those who look, and none is left over
            made.pty.print(b"x" * 4096)
            assert (await shown(made.session, viewer))[-4096:] == b"x" * 4096
        made.session.detach(viewer)
        made.pty.print(b"goes on")
        await clock.advance(1)
        assert made.ring.read(made.ring.head - 7, 7) == b"goes on"


async def test_the_end_of_a_terminal_ends_its_rest(clock: ManualClock) -> None:
    async with terminal(clock, SMALL) as made:
        made.pty.print(b"z" * 200)
        await settle()
        assert not made.pty.reading
        made.session.close("enough")
        await clock.advance(1)
        assert not made.pty.reading
        assert not [task for task in asyncio.all_tasks() if "rest" in task.get_name()]


async def test_a_viewer_that_leaves_holds_nobody_up(clock: ManualClock) -> None:
    async with terminal(clock, Limits(history=1000, staging=100)) as made:
        viewer = made.session.attach()
        made.pty.print(b"x" * 500)
        await settle()
        assert not made.pty.reading
        made.session.detach(viewer)
        assert made.pty.reading


async def test_a_terminal_without_a_viewer_ends_after_30_seconds(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        await clock.advance(29.9)
        assert made.session.state is State.READY
        await clock.advance(0.2)
        assert (made.process.killed, made.session.reason) == (True, "reconnecting pty timeout")


async def test_a_terminal_that_was_left_ends_after_the_idle_time(clock: ManualClock) -> None:
    closed: list[bool] = []
    async with terminal(clock, closing=lambda: closed.append(True)) as made:
        first, second = made.session.attach(), made.session.attach()
        await clock.advance(10_000)
        made.session.detach(first)
        await clock.advance(10_000)
        made.session.detach(second)
        await clock.advance(200)
        third = made.session.attach()
        await clock.advance(10_000)
        made.session.detach(third)
        await clock.advance(299.9)
        assert not closed
        await clock.advance(0.2)
        assert closed == [True]


async def test_an_adopted_terminal_has_the_idle_time_and_restores(clock: ManualClock) -> None:
    async with terminal(clock, adopted=True) as made:
        await clock.advance(100)
        viewer = made.session.attach()
        made.pty.print(b"x")
        assert await shown(made.session, viewer) == b"\x1bcx"
        made.session.detach(viewer)
        await clock.advance(301)
        assert made.session.state is State.CLOSING


@pytest.mark.spec("terminal-ssh-http", 5)
async def test_the_end_of_the_program_comes_after_its_output(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        viewer = made.session.attach()
        made.pty.print(b"last words")
        made.pty.end()
        assert await shown(made.session, viewer) == b"last words"
        assert await made.session.output(viewer) == b""
        assert (made.session.state, made.session.reason) == (State.CLOSING, "")
        made.session.detach(viewer)
        made.session.release()
        assert made.session.state is State.DONE
        assert made.process.closed


async def test_a_terminal_that_is_left_to_a_later_agent_is_not_killed(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        made.session.leave()
        assert (made.session.state, made.process.killed, made.process.closed) == (State.CLOSING, False, True)


@pytest.mark.spec("terminal-ssh-http", 7)
async def test_the_last_size_counts(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        made.session.resize(30, 100)
        made.session.resize(31, 101)
        assert made.pty.window == (31, 101)


async def test_a_full_screen_program_is_nudged_after_a_restore(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        first = made.session.attach()
        made.session.resize(24, 80)
        made.pty.print(b"\x1b[?1049h")
        await shown(made.session, first)
        assert made.pty.window == (24, 80)
        second = made.session.attach()
        await shown(made.session, second)
        assert made.pty.window == (24, 79)
        made.session.resize(40, 90)
        assert made.pty.window == (24, 79)
        await clock.advance(NUDGE)
        assert made.pty.window == (40, 90)


async def test_a_nudge_ends_with_the_terminal(clock: ManualClock) -> None:
    async with terminal(clock, adopted=True) as made:
        made.session.resize(24, 80)
        made.pty.print(b"\x1b[?1049h")
        await settle()
        await shown(made.session, made.session.attach())
        made.session.close("")
        await clock.advance(1)


async def test_a_shell_is_not_nudged(clock: ManualClock) -> None:
    async with terminal(clock, adopted=True) as made:
        made.session.resize(24, 80)
        made.pty.print(b"\x1b[?1049hvim\x1b[?1049l$ ")
        await settle()
        await shown(made.session, made.session.attach())
        assert made.pty.window == (24, 80)


async def test_who_waits_to_write_is_told_of_the_end(clock: ManualClock) -> None:
    async with terminal(clock) as made:
        writing = asyncio.create_task(made.session.write(b"a" * 200_000))
        await settle()
        assert made.pty.typed() == b"a" * 4096
        made.session.close("")
        with pytest.raises(PtyClosedError):
            await writing
