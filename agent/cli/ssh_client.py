"""An SSH client of our own, for machines without OpenSSH: one session, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agent.cli.errors import CliError
from agent.cli.reaching import connected
from agent.cli.ssh import PORT

FAILED = 255
"""What ssh ends with where there was no connection, or the command gave no status."""


async def session(agent: str, command: Sequence[str], *, tty: bool) -> int:
    """Run the command, or a shell, with our standard streams; its exit code. Raises `CliError`."""
    import asyncssh

    from agent.cli.stdio import join

    async with connected(agent) as connection:
        stream = await connection.dial(PORT)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            joined = asyncio.create_task(join(stream, ours.fileno(), ours.fileno()), name="ssh")
            joined.add_done_callback(lambda _: ours.close())  # the client notices by this, and by nothing else
            try:
                # No keys and no host key: in the tunnel both ends are known (terminal-ssh-http.md §3.3).
                nothing: dict[str, Any] = {"known_hosts": None, "client_keys": None, "agent_path": None, "config": None}
                async with asyncssh.connect("agent", sock=theirs, username="agent", **nothing) as client:
                    return await _run(client, " ".join(command) or None, tty=tty and sys.stdin.isatty())
            except (asyncssh.Error, OSError) as error:
                raise CliError(f"{agent}: {error}") from error
            finally:
                joined.cancel()
                await asyncio.gather(joined, return_exceptions=True)


async def _run(client: Any, command: str | None, *, tty: bool) -> int:
    terminal = {"term_type": os.environ.get("TERM", "xterm"), "term_size": _size()} if tty else {}
    process = await client.create_process(
        command, encoding=None, stdin=os.dup(0), stdout=os.dup(1), stderr=os.dup(2), **terminal
    )
    with _raw(process) if tty else contextlib.nullcontext():
        done = await process.wait()
    return FAILED if done.exit_status is None or done.exit_status < 0 else int(done.exit_status)


def _size() -> tuple[int, int]:
    found = shutil.get_terminal_size()
    return found.columns, found.lines


@contextmanager
def _raw(process: Any) -> Iterator[None]:
    """Every key goes to the other end, which also learns of a new size."""
    import termios
    import tty

    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(0)
    tty.setraw(0)
    loop.add_signal_handler(signal.SIGWINCH, lambda: process.change_terminal_size(*_size()))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
