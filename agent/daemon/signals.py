"""What signals do to the agent (daemon.md §1.5): stop, stop now, or say what every task and thread is doing."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_DUMP = 64 * 1024 * 1024
"""Characters of a dump; the rest is cut."""


@contextmanager
def handle_signals(
    stop: Callable[[str], None],
    environment: Mapping[str, str],
    talk: Callable[[], None] = lambda: None,
    make_way: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Call `stop` with the signal's name for each stop signal, `talk` on SIGUSR1 (log more, or less again),
    `make_way` on SIGUSR2 (a newer agent is to take over), and dump stacks on SIGQUIT and SIGTRAP.

    SIGQUIT then ends the process with code 1, with no shutdown. With `GOTRACEBACK=crash` it keeps its default, a core
    dump. Use it within the running loop, in the main thread.
    """
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGUSR1, talk)
    loop.add_signal_handler(signal.SIGUSR2, make_way)

    # Not through the loop: what is to be dumped may be that the loop does not turn.
    def dump(number: int, frame: FrameType | None) -> None:
        del frame  # the stack of the main thread is in the dump like the others
        write_dump(loop, environment)
        if number == signal.SIGQUIT:
            os._exit(1)

    before = {signal.SIGTRAP: signal.signal(signal.SIGTRAP, dump)}
    if environment.get("GOTRACEBACK") != "crash":
        before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, dump)
    try:
        yield
    finally:
        for number in (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGUSR2):
            loop.remove_signal_handler(number)
        for number, handler in before.items():
            signal.signal(number, handler)


def write_dump(loop: asyncio.AbstractEventLoop, environment: Mapping[str, str]) -> None:
    """The stacks, to standard error and to `<home or tmp>/coder-agent-<UTC time>.dump`."""
    text = stacks(loop)[:MAX_DUMP]
    directory = environment.get("HOME") or environment.get("TMPDIR") or "/tmp"  # noqa: S108 - as the specification says
    moment = datetime.now(UTC)
    path = Path(directory) / f"coder-agent-{moment:%Y-%m-%dT%H-%M-%S}.{moment.microsecond // 1000:03d}Z.dump"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError as error:
        text += f'\nthe dump could not be written to "{path}": {error.strerror or error}\n'
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # standard error is closed or full; the file has it


def stacks(loop: asyncio.AbstractEventLoop) -> str:
    """What every thread and every task is doing, innermost call last."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        print(f"thread {names.get(ident, '?')} ({ident}):", file=out)
        print("".join(traceback.format_stack(frame)), file=out)
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        task.print_stack(file=out)
        print(file=out)
    return out.getvalue()
