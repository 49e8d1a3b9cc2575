"""Figures of the real programs on this machine, each beside a baseline measured in the same run."""

from __future__ import annotations

import asyncio
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from agent.cli.output import print_table
from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component

SCRIPTS = Path(__file__).resolve().parent
MIB = 1024 * 1024
LINES = 200_000
CLIENTS = 500


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    value: str
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look."""

    starts: int
    idle: float  # seconds
    heartbeats: float  # seconds


FULL = Effort(starts=7, idle=60, heartbeats=30)
QUICK = Effort(starts=5, idle=10, heartbeats=10)


def definition(name: str, *, script: str = "", metadata: bool = False) -> str:
    """An agent with one start script, and perhaps one metadata item every 2 s."""
    return json.dumps(
        {
            "name": name,
            "scripts": [{"display_name": "start", "script": script, "run_on_start": True}] if script else [],
            "metadata": [{"key": "load", "script": "cat /proc/loadavg", "interval": "2s"}] if metadata else [],
        }
    )


@asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="workspace-agent-bench-") as directory:
        async with Deployment(Path(directory)) as running:
            yield running


async def measure_start(effort: Effort) -> list[Figure]:
    """From the start of the agent's process to `ready` at the server, with a start script that does nothing."""
    ready, plain = [], []
    async with deployment() as running:
        for number in range(effort.starts):
            created = await running.create_agent(definition(f"start-{number}", script="true"))
            agent = running.agent(created)
            began = time.perf_counter()
            await agent.start()
            await running.wait_for(created, 30, lifecycle_state={"ready"})
            ready.append(time.perf_counter() - began)
            await agent.stop(30)
            began = time.perf_counter()
            await (await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")).wait()
            plain.append(time.perf_counter() - began)
    return [
        Figure(
            f"process start to ready at the server (median of {effort.starts})",
            f"{statistics.median(ready) * 1e3:.0f} ms (at most {max(ready) * 1e3:.0f})",
            f"python -c pass {statistics.median(plain) * 1e3:.0f} ms",
        )
    ]


def memory(pid: int) -> str:
    """Resident and proportional memory of a process with its children."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    sizes = [member.memory_full_info() for member in family]
    return (
        f"{sum(size.rss for size in sizes) / MIB:.1f} MiB RSS, {sum(size.pss for size in sizes) / MIB:.1f} MiB PSS"
        f" in {len(family)} process{'es' if len(family) > 1 else ''}"
    )


async def plain_memory() -> str:
    """The same of an interpreter that does nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", stdin=-1, stdout=-1
    )
    assert process.stdout is not None
    await process.stdout.readline()
    text = memory(process.pid)
    await process.communicate(b"")  # closes its standard input, for which it waits
    return f"python {text}"


async def measure_logs(effort: Effort) -> list[Figure]:
    """Memory idle and after many lines, and how fast the lines of a script arrive in the server's database."""
    text = f"seq -f 'line %.0f of what a build prints' {LINES}"
    async with deployment() as running:
        began_file = running.directory / "began"
        script = f"while [ ! -e {running.directory}/go ]; do sleep 0.1; done; date +%s.%N > {began_file}; {text}"
        created = await running.create_agent(definition("logs", script=script))
        agent = running.agent(created)
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"starting"}, status={"connected"})
        await asyncio.sleep(2)
        idle = memory(agent.pid)
        (running.directory / "go").touch()
        size = sum(len(f"line {number} of what a build prints") for number in range(1, LINES + 1))
        stored = await until_stored(running, created, size)
        seconds = stored - float(began_file.read_text())
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        after = memory(agent.pid)

        began = time.perf_counter()
        target = running.directory / "plain"
        await (await asyncio.create_subprocess_exec("sh", "-c", f"{text} > {target}")).wait()
        plain = time.perf_counter() - began
    baseline = await plain_memory()
    return [
        Figure("memory of the agent, a start script waiting", idle, baseline),
        Figure(f"memory of the agent after {LINES:,} lines", after, baseline),
        Figure(
            f"{LINES:,} lines, script to the server's database",
            f"{LINES / seconds:,.0f} lines/s",
            f"script > file {LINES / plain:,.0f} lines/s",
        ),
    ]


async def until_stored(running: Deployment, created: CreatedAgent, size: int) -> float:
    """The wall time at which the server had `size` bytes of log lines."""
    async with asyncio.timeout(120):
        while True:
            found = await running.request("GET", f"workspaceagents/{created.id}")
            if found["logs_length"] >= size:
                return time.time()
            await asyncio.sleep(0.05)


async def measure_idle(effort: Effort) -> list[Figure]:
    """Processor time of a ready agent with a metadata item every 2 s, its commands included."""
    async with deployment() as running:
        created = await running.create_agent(definition("idle", metadata=True))
        agent = running.agent(created)
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        await asyncio.sleep(3)
        own, commands = await processor_share(agent, effort.idle)
        held = memory(agent.pid)
    began = time.perf_counter()
    runs = 50
    for _ in range(runs):
        await (await asyncio.create_subprocess_exec("sh", "-c", "cat /proc/loadavg", stdout=-3)).wait()
    one = (time.perf_counter() - began) / runs
    return [
        Figure(
            f"idle CPU over {effort.idle:.0f} s, metadata every 2 s",
            f"{own:.2f} % of a core, its commands {commands:.2f} %",
            f"the command alone {one / 2 * 100:.2f} %",
        ),
        Figure("memory of the agent, idle", held, await plain_memory()),
    ]


async def processor_share(component: Component, seconds: float) -> tuple[float, float]:
    """Percent of one core that the process used, and that its finished children used."""
    process = psutil.Process(component.pid)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, passed = process.cpu_times(), time.perf_counter() - began
    own = after.user + after.system - before.user - before.system
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return own / passed * 100, children / passed * 100


async def measure_many(effort: Effort) -> list[Figure]:
    """One server with many agents, which are protocol clients in one process of their own."""
    async with deployment() as running:
        tokens = []
        for number in range(CLIENTS):
            created = await running.create_agent(definition(f"many-{number}"))
            tokens.append(created.token_file.read_text())
        process = psutil.Process(running.server.pid)
        before = process.memory_full_info().pss
        clients = await asyncio.create_subprocess_exec(
            sys.executable, SCRIPTS / "bench_clients.py", running.url, str(effort.heartbeats), stdin=-1, stdout=-1
        )
        assert clients.stdin is not None
        assert clients.stdout is not None
        try:
            clients.stdin.write(json.dumps(tokens).encode() + b"\n")
            connected = json.loads(await clients.stdout.readline())
            held = process.memory_full_info().pss - before
            used, began = sum(process.cpu_times()[:2]), time.perf_counter()
            answer = json.loads(await clients.stdout.readline())
            share = (sum(process.cpu_times()[:2]) - used) / (time.perf_counter() - began) * 100
        finally:
            clients.stdin.close()
            if clients.returncode is None:
                clients.terminate()
            await clients.wait()
    return [
        Figure(f"server memory for each of {CLIENTS} agents", f"{held / CLIENTS / 1024:.1f} KiB PSS"),
        Figure(f"{CLIENTS} agents connect", f"{connected['seconds']:.1f} s"),
        Figure(
            f"heartbeat of one of {CLIENTS} agents, each every {answer['period']:.0f} s",
            f"p50 {answer['p50'] * 1e3:.1f} ms, p99 {answer['p99'] * 1e3:.1f} ms; server at {share:.0f} % of a core",
            f"one agent alone p50 {connected['alone'] * 1e3:.1f} ms",
        ),
    ]


async def measure_parts(effort: Effort) -> list[Figure]:
    """Rooms measured by themselves: `async def measure() -> dict[str, float]` in bench_parts/*.py."""
    figures = []
    # By plain names on the path, so that processes which a part starts find its functions, too.
    sys.path.insert(0, str(SCRIPTS / "bench_parts"))
    for path in sorted((SCRIPTS / "bench_parts").glob("*.py")):
        module = importlib.import_module(path.stem)
        figures += [Figure(f"{path.stem}: {what}", f"{value:,.1f}") for what, value in (await module.measure()).items()]
    return figures


PARTS: dict[str, Callable[[Effort], Awaitable[list[Figure]]]] = {
    "start": measure_start,
    "logs": measure_logs,
    "idle": measure_idle,
    "many": measure_many,
    "parts": measure_parts,
}


@click.command()
@click.option("--quick", is_flag=True, help="Shorter looks and fewer runs.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Only this part; repeatable.")
def main(quick: bool, only: tuple[str, ...]) -> None:
    """Measure the real programs on this machine."""
    effort = QUICK if quick else FULL
    figures: list[Figure] = []
    for name in only or PARTS:
        click.echo(f"measuring: {name} …", err=True)
        figures += asyncio.run(_collect(PARTS[name], effort))
    print_table(["WHAT", "HERE", "BASELINE"], [[figure.what, figure.value, figure.baseline] for figure in figures])


async def _collect(part: Callable[[Effort], Awaitable[list[Figure]]], effort: Effort) -> list[Figure]:
    return await part(effort)


if __name__ == "__main__":
    main()
