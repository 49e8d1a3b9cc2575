"""The workspace that the first manifest brings to life, and that outlives every connection (daemon.md §2.1, §4.9).

`Workspace` opens the state directory, the log service and the scripts once, runs the start phase in the background,
takes in later manifests, and runs the stop scripts. It holds the state directory of its agent until it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from agent.api.manifest import Manifest, Secret
from agent.api.methods import AgentApi
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock, wait_for
from agent.daemon.environment import CommandEnvironment
from agent.daemon.journal import Journal, machine_start
from agent.daemon.lifecycle import State
from agent.daemon.logfile import get_logger
from agent.daemon.reports import LifecycleReporter
from agent.daemon.secret_files import write_secret_files
from agent.daemon.statedir import StateDirectory, StateDirectoryError, open_state_directory, remove_old
from agent.scripts import PhaseResult, Stage


class Logs(Protocol):
    """`agent.logs.LogService`, as far as it is used here."""

    def open(self) -> None:
        """Take over what is in the spool; never fails, takes no time."""

    def redact(self, values: Iterable[str]) -> None:
        """Never send or store any of these values."""

    async def send(self, api: AgentApi) -> None:
        """The routine of one connection."""

    async def drained(self) -> None:
        """Wait until everything so far is acknowledged."""

    async def aclose(self) -> None:
        """Stop capturing and close the spool."""


class Scripts(Protocol):
    """`agent.scripts.ScriptRunner`, as far as it is used here."""

    async def prepare(self) -> None:
        """Directories and schedules."""

    async def adopt(self) -> object:
        """Go on with runs of a killed agent."""

    async def run_start(self, already_done: Mapping[UUID, PhaseResult] = ...) -> PhaseResult:
        """All start scripts, except those that have ended already, with these results."""

    async def run_stop(self) -> PhaseResult:
        """All stop scripts."""

    def start_cron(self) -> None:
        """Begin to fire."""

    async def interrupt_start(self) -> None:
        """HUP to start scripts that run."""

    async def aclose(self) -> None:
        """Refuse new runs, end the running ones."""


HARD_LIMIT = 1.0
"""Seconds that scripts get to end after a second signal."""

START_STATES = {
    PhaseResult.OK: State.READY,
    PhaseResult.TIMEOUT: State.START_TIMEOUT,
    PhaseResult.ERROR: State.START_ERROR,
}
STOP_STATES = {
    PhaseResult.OK: State.OFF,
    PhaseResult.TIMEOUT: State.SHUTDOWN_TIMEOUT,
    PhaseResult.ERROR: State.SHUTDOWN_ERROR,
}


L = TypeVar("L", bound=Logs)


class Workspace(Generic[L]):
    """See the module. `make_logs` and `make_scripts` get the state directory, None when there is none to be had;
    `home` is the home directory that `~` in secret files means, empty when it is not known."""

    def __init__(
        self,
        *,
        state_root: Path,
        journal: Journal,
        lifecycle: LifecycleReporter,
        context: CommandEnvironment,
        make_logs: Callable[[Path | None], L],
        make_scripts: Callable[[Manifest, Path | None, L], Scripts],
        secret_values: Callable[[Mapping[str, str]], Iterable[str]],
        home: str,
        clock: Clock,
    ) -> None:
        self._state_root = state_root
        self._journal = journal
        self._lifecycle = lifecycle
        self._context = context
        self._make_logs = make_logs
        self._make_scripts = make_scripts
        self._secret_values = secret_values
        self._home = home
        self._clock = clock
        self._directories: list[StateDirectory] = []
        self._manifest: Manifest | None = None
        self._logs: L | None = None
        self._scripts: Scripts | None = None
        self._opened = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = asyncio.Lock()
        self.start_phase: tuple[float, PhaseResult] | None = None
        """Seconds that the start scripts took in this process, and how they ended; None before that."""

    @property
    def known_manifest(self) -> Manifest | None:
        """The latest manifest; None before the first."""
        return self._manifest

    @property
    def logs(self) -> L | None:
        """The log service; None before the first manifest."""
        return self._logs

    @property
    def manifest(self) -> Manifest:
        """The latest manifest. Only routines that come after the manifest routine may ask."""
        assert self._manifest is not None, "no manifest yet"
        return self._manifest

    async def publish(self, manifest: Manifest, secrets: tuple[Secret, ...], directory: str) -> None:
        """Take in a manifest; the first one begins everything.

        What was begun is carried through even when the connection that brought the manifest is lost meanwhile.
        """
        task = asyncio.create_task(self._take(manifest, secrets, directory), name="manifest")
        self._tasks.append(task)
        try:
            await asyncio.shield(task)
        finally:
            self._tasks = [task for task in self._tasks if not task.done()]

    async def send_logs(self, api: AgentApi) -> None:
        """The logs routine: before the first manifest there is nothing to send."""
        await self._opened.wait()
        assert self._logs is not None
        await self._logs.send(api)

    async def logs_drained(self) -> None:
        """Wait until the server has all log lines so far."""
        if self._logs is not None:
            await self._logs.drained()

    async def refuse_manifests(self) -> None:
        """The shutdown has begun: take in no manifest any more, and finish with the one that is being taken in.

        How start scripts end no longer counts from here on.
        """
        self._closing = True
        async with self._lock:
            return

    async def interrupt_start(self) -> None:
        """Tell start scripts that run that they are to end."""
        if self._scripts is not None:
            await self._scripts.interrupt_start()

    def script_ended(self, script: UUID, stage: Stage, result: PhaseResult) -> None:
        """Remember how a start script ended, so that a later process of this life does not run it again.

        What the run's own process said counts: a successor that only tidies up after it knows less.
        """
        if stage == pb.Timing.START and not self._closing and script not in self._journal.state.results:
            self._journal.start_script_ended(script, result)

    async def run_stop(self) -> None:
        """Run the stop scripts and enter the final state."""
        result = PhaseResult.ERROR
        try:
            if self._scripts is not None:
                result = await self._scripts.run_stop()
            else:
                get_logger("agent.workspace").warning("stopped before there was a manifest: no stop script was run")
        finally:
            self._lifecycle.enter(STOP_STATES[result])

    async def close_scripts(self) -> None:
        """End cron runs and everything else that scripts left running."""
        if self._scripts is not None:
            await self._scripts.aclose()

    async def aclose(self) -> None:
        """Stop the background work, close the logs and the journal, unlock the state directory."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if self._scripts is not None:
                # After a graceful shutdown this is done already; after a second signal it kills what runs.
                with contextlib.suppress(TimeoutError):
                    await wait_for(self._clock, self._scripts.aclose(), HARD_LIMIT)
            if self._logs is not None:
                await self._logs.aclose()
            await self._journal.aclose()
        finally:
            for directory in self._directories:
                directory.close()
            self._directories.clear()

    # ---- manifests

    async def _take(self, manifest: Manifest, secrets: tuple[Secret, ...], directory: str) -> None:
        async with self._lock:
            if self._closing:
                return
            await asyncio.to_thread(self._context.update, manifest, secrets, directory)
            await asyncio.to_thread(write_secret_files, secrets, self._home)
            former, self._manifest = self._manifest, manifest
            if self._scripts is None:  # also when an earlier try to begin failed half way (quirk Q6)
                self._scripts = await self._begin(manifest)
            elif former is not None and former.agent_id != manifest.agent_id:
                await self._become(manifest.agent_id)
            assert self._logs is not None
            values = [secret.value.decode("utf-8", "surrogateescape") for secret in secrets]
            self._logs.redact([*values, *self._secret_values(await asyncio.to_thread(self._context.environment))])

    async def _begin(self, manifest: Manifest) -> Scripts:
        path = await self._open_state(manifest.agent_id)
        if path is not None and await self._resume(path / "journal"):
            state = self._lifecycle.state.name.lower()
            get_logger("agent.workspace").info("going on where the former process was", state=state)
        if self._logs is None:
            self._logs = self._make_logs(path)
            self._logs.open()
            self._opened.set()
        if self._lifecycle.state < State.STARTING:
            self._lifecycle.enter(State.STARTING)
        # A kill from here on must find on disk that the life began.
        await self._journal.flush()
        scripts = self._make_scripts(manifest, path, self._logs)
        self._tasks.append(asyncio.create_task(self._start(scripts), name="start phase"))
        if path is not None:
            self._tasks.append(asyncio.create_task(self._remove_old(manifest.agent_id), name="old state directories"))
        return scripts

    async def _resume(self, path: Path) -> bool:
        return await self._journal.open(path, await asyncio.to_thread(machine_start))

    async def _become(self, agent_id: UUID) -> None:
        """The same machine was given another agent (quirk Q7). Logs and runs stay where they are."""
        get_logger("agent.workspace").info("this is another agent now", agent=str(agent_id))
        path = await self._open_state(agent_id)
        if path is not None:
            await self._journal.move(path / "journal")
        self._lifecycle.reintroduce()
        await self._journal.flush()

    async def _open_state(self, agent_id: UUID) -> Path | None:
        for directory in self._directories:
            if directory.path.name == str(agent_id):
                return directory.path
        try:
            directory = await asyncio.to_thread(open_state_directory, self._state_root, agent_id)
        except StateDirectoryError as error:
            get_logger("agent.workspace").warning(
                "nothing is kept on disk: a killed agent will forget what it did and still has to report",
                error=error,
            )
            return None
        self._directories.append(directory)
        return directory.path

    async def _remove_old(self, keep: UUID) -> None:
        log = get_logger("agent.workspace")
        try:
            for path in await asyncio.to_thread(remove_old, self._state_root, keep):
                log.info("removed the state of an agent of long ago", path=str(path))
        except OSError as error:
            log.warning("the state of former agents cannot be tidied", path=str(self._state_root), error=error)

    # ---- the start phase

    async def _start(self, scripts: Scripts) -> None:
        journal = self._journal
        try:
            await scripts.prepare()
            await scripts.adopt()
            if self._closing:
                return
            if not journal.state.start_result:
                done = {script: PhaseResult(result) for script, result in journal.state.results.items()}
                began = self._clock.now()
                result = await scripts.run_start(done)
                self.start_phase = self._clock.now() - began, result
                if self._closing:
                    return
                journal.start_phase_ended(result)
        except Exception as error:
            # Whatever it is, the user must not be left with a workspace that is "starting" for ever (quirk Q6).
            get_logger("agent.workspace").error("the start phase failed", error=error, exc_info=error)
            if self._closing:
                return
            journal.start_phase_ended(PhaseResult.ERROR)
        if self._lifecycle.state is State.STARTING:
            self._lifecycle.enter(START_STATES[PhaseResult(journal.state.start_result)])
        await journal.flush()
        if not self._closing:
            scripts.start_cron()
