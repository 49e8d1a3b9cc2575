"""The quickstart: a control plane and an agent on this machine, and what the agent does as the server sees it.

Every run begins anew in `.quickstart/`; whatever an earlier one left there, processes included, is cleared away.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil

from agent.cli.client import Client
from agent.cli.command import INTERRUPTED
from agent.cli.errors import CliError
from agent.cli.logs import render
from agent.cli.session import Session
from agent.testing.processes import Component, ComponentError

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".quickstart"
EXAMPLE = ROOT / "scripts" / "examples" / "workspace.yaml"
MARK = "WORKSPACE_AGENT_QUICKSTART"  # in the environment of everything that a run starts

STARTED = {"ready", "start_error", "start_timeout"}
STOPPED = {"off", "shutdown_error", "shutdown_timeout"}

SERVER_START, CONNECT, START_PHASE, STOP_PHASE, SERVER_STOP = 30.0, 30.0, 120.0, 60.0, 10.0  # seconds
LOOK_AGAIN = 0.2
QUIET = 1.2  # seconds without a new line after which the output of a phase is taken as complete


class View:
    """Prints an agent's log lines as they arrive at the server, and waits for its states."""

    def __init__(self, client: Client, agent_id: str, agent: Component) -> None:
        self._client, self._id, self._agent = client, agent_id, agent
        self._last_line = time.monotonic()
        self.lines = 0

    async def print_lines(self) -> None:
        found = await self._client.get(f"workspaceagents/{self._id}")
        names = {source["id"]: source["display_name"] for source in found["log_sources"]}
        async for line in self._client.follow_logs(self._id):
            self._last_line = time.monotonic()
            self.lines += 1
            click.echo(render(line, names.get(line["source_id"], "")))

    async def wait_for(self, field: str, wanted: set[str], seconds: float) -> str:
        """Until `field` of the agent, as the server has it, is one of `wanted`."""
        found: Any = None
        try:
            async with asyncio.timeout(seconds):
                while (found := (await self._client.get(f"workspaceagents/{self._id}"))[field]) not in wanted:
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            wish = " or ".join(sorted(wanted))
            raise ComponentError(
                f"the agent's {field} is {found!r} at the server, not {wish}, after {seconds:g} s{self._agent.tail()}"
            ) from None
        return str(found)

    async def wait_for_quiet(self) -> None:
        """Lines and states travel apart; this lets the lines of a phase arrive before its state is told."""
        began = time.monotonic()
        while time.monotonic() - max(self._last_line, began) < QUIET and time.monotonic() - began < 4 * QUIET:
            await asyncio.sleep(LOOK_AGAIN / 4)


async def run(stop: asyncio.Event, check: bool) -> None:
    """Everything between an empty state directory and the end of both programs."""
    environment = {**os.environ, MARK: str(STATE)}
    server = Component(
        "server",
        ["server", "--address", "127.0.0.1", "--data-dir", str(STATE / "server")],
        directory=STATE,
        environment=environment,
    )
    async with ended(server, SERVER_STOP):
        await server.start()
        url = (await server.wait_for_output(r"listening on (http://\S+)", SERVER_START))[1]
        async with Client(Session(url, await first_user(url))) as client:
            link = await client.post("users/me/login-links")
            created = await client.request("POST", "agents", text=EXAMPLE.read_text())
            token = STATE / "agent-token"
            token.touch(0o600)
            token.write_text(created["token"])
            click.echo(f"{click.style('open', bold=True)} {link['url']}")
            options = {"url": url, "token-file": token, "state-dir": STATE / "agent", "log-dir": STATE}
            agent = Component(
                "agent",
                ["agent", *(f"--{name}={value}" for name, value in options.items())],
                directory=STATE,
                environment=environment,
            )
            async with ended(agent, STOP_PHASE):
                await agent.start()
                await show(View(client, created["id"], agent), agent, stop, check)


async def show(view: View, agent: Component, stop: asyncio.Event, check: bool) -> None:
    """Print the agent's states and lines until it has stopped in order."""
    await view.wait_for("status", {"connected"}, CONNECT)
    click.secho("connected", fg="green", bold=True)
    printing = asyncio.create_task(view.print_lines())
    running = asyncio.create_task(fail_when_ended(agent))
    phases = asyncio.create_task(show_phases(view, agent, stop, check, running))
    tasks = {printing, running, phases}
    try:
        while not phases.done():
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tasks.discard(task)
                if not task.cancelled():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def show_phases(
    view: View, agent: Component, stop: asyncio.Event, check: bool, running: asyncio.Task[None]
) -> None:
    state = await unless(stop, view.wait_for("lifecycle_state", STARTED, START_PHASE))
    if state is not None:
        await view.wait_for_quiet()
        click.secho(state, fg="green" if state == "ready" else "red", bold=True)
        if check and (state != "ready" or not view.lines):
            raise ComponentError(f"the start phase ended as {state} with {view.lines} lines{agent.tail()}")
        if not check:
            click.secho("Ctrl-C stops it", dim=True)
            await stop.wait()
    running.cancel()
    agent.send_signal(signal.SIGTERM)
    state = await view.wait_for("lifecycle_state", STOPPED, STOP_PHASE)
    await view.wait_for_quiet()
    click.secho(state, fg="green" if state == "off" else "red", bold=True)
    if check and state != "off":
        raise ComponentError(f"the stop phase ended as {state}{agent.tail()}")


async def first_user(url: str) -> str:
    """Makes the owner of the new server; the session token."""
    credentials = {"email": "admin@localhost", "password": secrets.token_urlsafe(16)}
    async with Client(Session(url, "")) as client:
        await client.post("users/first", {**credentials, "username": "admin"})
        return str((await client.post("users/login", credentials))["session_token"])


async def fail_when_ended(component: Component) -> None:
    code = await component.wait()
    raise ComponentError(f"the {component.name} ended by itself with exit status {code}{component.tail()}")


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when `stop` came first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


@contextlib.asynccontextmanager
async def ended(component: Component, seconds: float) -> AsyncIterator[None]:
    """Whatever happens in the body, the child is stopped; the hard way where the body was cancelled."""
    try:
        yield
    except asyncio.CancelledError:
        await component.kill()
        raise
    finally:
        if component.running:
            await component.stop(seconds)


@contextlib.contextmanager
def fresh_state() -> Iterator[None]:
    """`.quickstart/`, empty, for this run alone; afterwards nothing that the run started is left running."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ComponentError(f"another quickstart runs in {STATE}; stop that one first") from None
        end_marked_processes()
        for path in STATE.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        try:
            yield
        finally:
            end_marked_processes()


def end_marked_processes() -> None:
    """Kills what runs of the quickstart in this checkout left behind, such as programs that a script put in the
    background."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or gone
            if process.pid != os.getpid() and process.environ().get(MARK) == str(STATE):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=5)


async def main(check: bool) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()

    def interrupt() -> None:
        if stop.is_set():
            task.cancel()  # asked a second time: the hard way
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    await run(stop, check)


@click.command()
@click.option("--check", is_flag=True, help="Unattended: stop after the start phase; exit 0 when all went well.")
def command(check: bool) -> None:
    """Start a control plane and an agent here, and show what the agent does as the server sees it."""
    try:
        with fresh_state():
            asyncio.run(main(check))
    except ComponentError as error:
        raise CliError(str(error)) from error
    except asyncio.CancelledError:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    command()
