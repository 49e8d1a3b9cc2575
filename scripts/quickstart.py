"""The quickstart: a control plane and an agent on this machine, and what the agent does as the server sees it.

Every run begins anew in `.quickstart/`; whatever an earlier one left there, processes included, is cleared away.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import psutil

from agent.cli.client import Client
from agent.cli.command import INTERRUPTED
from agent.cli.errors import CliError
from agent.cli.logs import render
from agent.cli.session import Session
from agent.testing.deployment import AGENT_STOP, CreatedAgent, Deployment
from agent.testing.processes import Component, ComponentError

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "scripts" / "examples" / "workspace.yaml"
MARK = "WORKSPACE_AGENT_QUICKSTART"  # in the environment of everything that a run starts

STARTED = {"ready", "start_error", "start_timeout"}
STOPPED = {"off", "shutdown_error", "shutdown_timeout"}

CONNECT, START_PHASE = 30.0, 120.0  # seconds
QUIET = 1.2  # seconds without a new line after which the output of a phase is taken as complete


class Lines:
    """Prints an agent's log lines as they arrive at the server."""

    def __init__(self, client: Client, agent: CreatedAgent) -> None:
        self._client, self._agent = client, agent
        self._last = time.monotonic()
        self.count = 0

    async def print(self) -> None:
        found = await self._client.get(f"workspaceagents/{self._agent.id}")
        names = {source["id"]: source["display_name"] for source in found["log_sources"]}
        async for line in self._client.follow_logs(self._agent.id):
            self._last = time.monotonic()
            self.count += 1
            click.echo(render(line, names.get(line["source_id"], "")))

    async def wait_for_quiet(self) -> None:
        """Lines and states travel apart; this lets the lines of a phase arrive before its state is told."""
        began = time.monotonic()
        while time.monotonic() - max(self._last, began) < QUIET and time.monotonic() - began < 4 * QUIET:
            await asyncio.sleep(QUIET / 20)


async def run(state: Path, stop: asyncio.Event, check: bool) -> None:
    """Everything between an empty state directory and the end of both programs."""
    async with (
        Deployment(state, port=None, environment={**os.environ, MARK: str(state)}) as deployment,
        Client(Session(deployment.url, deployment.token)) as client,
    ):
        link = await client.post("users/me/login-links")
        click.echo(f"{click.style('open', bold=True)} {link['url']}")
        created = await deployment.create_agent(EXAMPLE.read_text())
        agent = deployment.agent(created)
        await agent.start()
        await deployment.wait_for(created, CONNECT, status={"connected"})
        click.secho("connected", fg="green", bold=True)
        lines = Lines(client, created)
        try:
            async with asyncio.TaskGroup() as group:
                printing = group.create_task(lines.print())
                watching = group.create_task(fail_when_ended(agent))
                await show_start(deployment, created, lines, stop, check)
                watching.cancel()
                agent.send_signal(signal.SIGTERM)
                await show_stop(deployment, created, lines, check)
                printing.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if (code := await agent.stop(AGENT_STOP)) != 0:
            raise ComponentError(f"the agent ended with exit status {code}{agent.tail()}")


async def show_start(
    deployment: Deployment, created: CreatedAgent, lines: Lines, stop: asyncio.Event, check: bool
) -> None:
    """Until the start phase is over (with `check`) or the person wants it to stop."""
    found = await unless(stop, deployment.wait_for(created, START_PHASE, lifecycle_state=STARTED))
    if found is None:
        return
    await lines.wait_for_quiet()
    state = found["lifecycle_state"]
    click.secho(state, fg="green" if state == "ready" else "red", bold=True)
    if check and (state != "ready" or not lines.count):
        raise ComponentError(f"the start phase ended as {state} with {lines.count} lines at the server")
    if not check:
        click.secho("Ctrl-C stops it", dim=True)
        await stop.wait()


async def show_stop(deployment: Deployment, created: CreatedAgent, lines: Lines, check: bool) -> None:
    found = await deployment.wait_for(created, AGENT_STOP, lifecycle_state=STOPPED)
    await lines.wait_for_quiet()
    state = found["lifecycle_state"]
    click.secho(state, fg="green" if state == "off" else "red", bold=True)
    if check and state != "off":
        raise ComponentError(f"the stop phase ended as {state}")


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


@contextlib.contextmanager
def fresh(state: Path) -> Iterator[None]:
    """The directory, empty, for this run alone; afterwards nothing that the run started is left running."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ComponentError(f"another quickstart runs in {state}; stop that one first") from None
        end_marked_processes(state)
        for path in state.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        try:
            yield
        finally:
            end_marked_processes(state)


def end_marked_processes(state: Path) -> None:
    """Kills what runs in this directory left behind, such as programs that a script put in the background."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or gone
            if process.pid != os.getpid() and process.environ().get(MARK) == str(state):
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=5)


async def main(state: Path, check: bool) -> None:
    """Runs it; a first SIGINT, SIGTERM or SIGHUP stops in order, a second one at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    stop = asyncio.Event()

    def interrupt() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    await run(state, stop, check)


@click.command()
@click.option("--check", is_flag=True, help="Unattended: stop after the start phase; exit 0 when all went well.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / ".quickstart",
    help="Emptied and used for everything that the run keeps.  [default: .quickstart]",
)
def command(check: bool, directory: Path) -> None:
    """Start a control plane and an agent here, and show what the agent does as the server sees it."""
    state = directory.resolve()
    try:
        with fresh(state):
            asyncio.run(main(state, check))
    except ComponentError as error:
        raise CliError(str(error)) from error
    except asyncio.CancelledError:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    command()
