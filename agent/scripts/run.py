"""One run of one script, from its directories to its timing report (daemon.md §4.3)."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar
from uuid import UUID, uuid4

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb
from agent.clock import Clock
from agent.process import CommandError, ProcessId, build_command
from agent.scripts import kept
from agent.scripts.files import ScriptDirectories, ScriptFileError, log_path, open_log
from agent.scripts.holders import find_holders
from agent.scripts.kept import KeeperFds, LaunchError
from agent.scripts.ports import Captures, CommandContext, ScriptCompleted
from agent.scripts.runs import RunRecord, RunStatus, RunStore
from agent.scripts.supervise import Ending, Limits, ScriptProcess, supervise

T = TypeVar("T")

Stage: TypeAlias = pb.Timing.Stage.ValueType

_UNKNOWN_EXIT = 255


class PhaseResult(enum.StrEnum):
    """How a run, or a phase of runs, ended; a phase ends like the first of its runs that did not end well."""

    OK = "OK"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"


class LaunchedScript(ScriptProcess, Protocol):
    """What a run needs of a started script; `kept.KeptScript` is one."""

    output: tuple[int | None, int | None]
    pipes: frozenset[int]

    async def release(self) -> None:
        """Let go of the script, and close what was not taken over of `output`."""


class Launcher(Protocol):
    """How scripts are started; `agent.scripts.kept` does it for real. Called in a thread."""

    def launch(
        self,
        argv: Sequence[str],
        directory: str,
        environment: Mapping[str, str],
        *,
        status_fd: int,
        before_start: Callable[[ProcessId, KeeperFds], None],
    ) -> LaunchedScript:
        """See `kept.launch`."""

    def take_over(self, record: RunRecord, store: RunStore) -> LaunchedScript:
        """See `kept.take_over`."""


class KeeperLauncher:
    """The real one."""

    launch = staticmethod(kept.launch)
    take_over = staticmethod(kept.take_over)


OnResult = Callable[[UUID, Stage, PhaseResult], None]
"""Takes the script's id (that of its log source where it has none), the stage and how the run ended."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all runs of a runner have in common."""

    captures: Captures
    context: CommandContext
    completed: ScriptCompleted
    on_result: OnResult | None
    clock: Clock
    limits: Limits
    directories: ScriptDirectories
    log_dir: Path
    store: RunStore | None
    life: str
    written: Callable[[], Awaitable[None]] | None = None
    launcher: Launcher = field(default_factory=KeeperLauncher)


class Run:
    """One run. `stop` ends it: SIGHUP, a grace, SIGKILL, each to the process group.

    `started` is wall time in nanoseconds. Cancelling `execute` or `resume` kills the script.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        script_id: UUID,
        source_id: UUID,
        stage: Stage,
        timeout: float,
        run_id: UUID | None = None,
        started: int | None = None,
    ) -> None:
        self.script_id = script_id
        self.source_id = source_id
        self.stage = stage
        self.timeout = timeout
        self.started = surroundings.clock.wall() if started is None else started
        self.run_id = run_id or uuid4()
        self.stop = asyncio.Event()
        self._around = surroundings
        self._began = surroundings.clock.now()
        self._undo = contextlib.AsyncExitStack()
        self._log_fd: int | None = None
        self._over = False

    @property
    def key(self) -> UUID:
        """What the script is called towards the daemon: servers before API 2.3 send no script ids."""
        return self.script_id if self.script_id.int else self.source_id

    async def execute(self, script: Script) -> PhaseResult:
        """Run the script. Whatever goes wrong ends this run alone, and is told in the script's log."""

        async def body() -> PhaseResult:
            if self.stop.is_set():
                return PhaseResult.ERROR
            try:
                process = await complete(self._launch(script))
            except LaunchError as error:
                self._tell(str(error))
                return self._report(Ending.LOST, None, self._around.clock.wall())
            spent = self._around.clock.now() - self._began
            return await self._attend(process, max(self.timeout - spent, 0.0) if self.timeout else None)

        return await self._guarded(body)

    async def resume(self, record: RunRecord) -> PhaseResult:
        """Go on with a run that a killed agent left behind. Its time limit counts from its start."""

        async def body() -> PhaseResult:
            process = await complete(self._take_over(record))
            # The wall clock may have been set since: the limit is neither stretched nor negative.
            spent = min(max((self._around.clock.wall() - self.started) / 1e9, 0.0), self.timeout)
            return await self._attend(process, self.timeout - spent if self.timeout else None)

        return await self._guarded(body)

    async def _guarded(self, body: Callable[[], Awaitable[PhaseResult]]) -> PhaseResult:
        try:
            result = await self._attempt(body)
            if self._around.on_result is not None:
                self._around.on_result(self.key, self.stage, result)
            if self._around.written is not None:
                # A successor that found neither the result nor the record would run the script again.
                await self._around.written()
        finally:
            await complete(asyncio.to_thread(self._forget))
        return result

    async def _attempt(self, body: Callable[[], Awaitable[PhaseResult]]) -> PhaseResult:
        try:
            return await body()
        except (ScriptFileError, CommandError) as error:
            self._tell(str(error))
        except Exception as error:
            # A mistake of ours, or an environment that cannot be made: it costs this run, nothing else.
            logger().exception("script run failed", **self._names())
            self._around.captures.note(self.source_id, pb.Log.ERROR, f"the script could not be run: {error}")
        finally:
            await complete(self._clean_up())
        return PhaseResult.ERROR

    def _forget(self) -> None:
        if self._around.store is not None:
            self._around.store.remove(self.run_id)

    async def _clean_up(self) -> None:
        """Undo everything, last first; what one step cannot undo does not keep the others from it."""
        try:
            await self._undo.aclose()
        except Exception:
            logger().exception("a script run left something behind", **self._names())

    async def _launch(self, script: Script) -> LaunchedScript:
        try:
            process = await asyncio.to_thread(self._start, script)
        except LaunchError as error:
            if self._log_fd is not None:
                await asyncio.to_thread(_append_line, self._log_fd, str(error))
            raise
        self._undo.push_async_callback(self._let_go, process)
        return process

    def _start(self, script: Script) -> LaunchedScript:
        """In a thread. What was made before a failure is undone with the rest."""
        around = self._around
        data = around.directories.make_data(self.source_id)
        path = log_path(script, around.log_dir, os.environ)
        self._undo.push_async_callback(asyncio.to_thread, self._close_log)
        self._log_fd = open_log(path, truncate=True)
        status_fd, recorded = self._make_room()
        try:
            command = build_command(
                script.text,
                around.context.shell(),
                str(around.store.path(self.run_id)) if recorded and around.store else None,
            )
            self._undo.push_async_callback(asyncio.to_thread, command.cleanup)
            environment = {
                **around.context.environment(),
                "CODER_SCRIPT_DATA_DIR": str(data),
                "CODER_SCRIPT_BIN_DIR": str(around.directories.bin),
            }
            directory = around.context.directory()
        except BaseException:
            os.close(status_fd)
            raise

        def write_down(keeper: ProcessId, fds: KeeperFds) -> None:
            if recorded:
                self._write_down(path, keeper, fds)

        return around.launcher.launch(
            command.argv, directory, environment, status_fd=status_fd, before_start=write_down
        )

    def _make_room(self) -> tuple[int, bool]:
        """A status file for the keeper, and whether the run can be written down next to it."""
        store = self._around.store
        if store is not None:
            try:
                status_fd = store.create(self.run_id)
            except OSError as error:
                store.complain(error)
            else:
                return status_fd, True
        return os.memfd_create("script-status"), False

    def _write_down(self, path: str, keeper: ProcessId, fds: KeeperFds) -> None:
        store = self._around.store
        assert store is not None
        record = RunRecord(
            run_id=self.run_id,
            life=self._around.life,
            script_id=self.script_id,
            source_id=self.source_id,
            stage=self.stage,
            started=self.started,
            timeout=self.timeout,
            log_path=os.fsencode(path),
            keeper=keeper,
            stdout_fd=fds.stdout,
            stderr_fd=fds.stderr,
            wake_fd=fds.wake,
        )
        try:
            store.write(record)
        except OSError as error:
            store.complain(error)

    async def _take_over(self, record: RunRecord) -> LaunchedScript:
        around = self._around
        assert around.store is not None
        self._undo.push_async_callback(asyncio.to_thread, self._close_log)
        try:
            self._log_fd = await asyncio.to_thread(open_log, os.fsdecode(record.log_path), truncate=False)
        except ScriptFileError as error:
            self._tell(str(error))
        process = await asyncio.to_thread(around.launcher.take_over, record, around.store)
        self._undo.push_async_callback(self._let_go, process)
        return process

    async def _attend(self, process: LaunchedScript, remaining: float | None) -> PhaseResult:
        around = self._around
        stdout, stderr = process.output
        log_fd = self._log_fd
        capture = around.captures.start(self.run_id, self.source_id, log_fd, stdout, stderr)
        process.output, self._log_fd = (None, None), None  # the capture closes them
        self._undo.push_async_callback(capture.finish)
        begun = around.clock.wall()
        ending, status = await supervise(
            process, capture, remaining=remaining, stop=self.stop, clock=around.clock, limits=around.limits
        )
        self._over = True
        ended = around.clock.wall()
        if ending is Ending.PIPES_LEFT_OPEN:
            capture.note(_pipes_warning(around.limits.drain, await asyncio.to_thread(find_holders, process.pipes)))
        elif ending is Ending.LOST:
            capture.note("the process that kept this script was killed; how the script ended is not known")
        elif 0 < status.ended < begun:
            ended = status.ended  # while no agent was there
        return self._report(ending, status, ended)

    async def _let_go(self, process: LaunchedScript) -> None:
        try:
            if not self._over:
                process.signal_group(signal.SIGKILL)
        finally:
            await process.release()

    def _report(self, ending: Ending, status: RunStatus | None, ended: int) -> PhaseResult:
        exit_code, timing_status, result = outcome(ending, status.exit_code if status else None)
        timing = pb.Timing(script_id=self.script_id.bytes, exit_code=exit_code, stage=self.stage, status=timing_status)
        # A clock that was set back must not make the server refuse the report (§4.10).
        timing.start.FromNanoseconds(self.started)
        timing.end.FromNanoseconds(max(self.started, ended))
        logger().info("script ended", **self._names(), exit_code=exit_code, result=str(result))
        self._around.completed(timing)
        return result

    def _tell(self, text: str) -> None:
        """An error that belongs to this script: in its log as well as in the agent's."""
        logger().error("script failed", **self._names(), reason=text)
        self._around.captures.note(self.source_id, pb.Log.ERROR, text)

    def _names(self) -> dict[str, str]:
        return {"script": str(self.key), "stage": pb.Timing.Stage.Name(self.stage)}

    def _close_log(self) -> None:
        log_fd, self._log_fd = self._log_fd, None
        if log_fd is not None:
            os.close(log_fd)


def outcome(ending: Ending, exit_code: int | None) -> tuple[int, pb.Timing.Status.ValueType, PhaseResult]:
    """Exit code and status of the timing report, and what it means for the phase (daemon.md §4.7)."""
    match ending:
        case Ending.EXITED if exit_code == 0:
            return 0, pb.Timing.OK, PhaseResult.OK
        case Ending.EXITED if exit_code is not None:
            return exit_code, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR
        case Ending.TIMED_OUT:
            return _UNKNOWN_EXIT, pb.Timing.TIMED_OUT, PhaseResult.TIMEOUT
        case Ending.PIPES_LEFT_OPEN:
            return _UNKNOWN_EXIT, pb.Timing.PIPES_LEFT_OPEN, PhaseResult.ERROR
        case _:
            return _UNKNOWN_EXIT, pb.Timing.EXIT_FAILURE, PhaseResult.ERROR


async def complete(work: Awaitable[T]) -> T:
    """Await work to its end even if cancelled meanwhile; the cancellation is raised afterwards.

    For work of bounded length that must not be left half done.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise cancelled from failure
        raise cancelled
    return task.result()


def logger() -> Any:
    """The agent's own log. structlog is imported by the daemon anyway, and too slow to import for nothing."""
    import structlog

    return structlog.get_logger("agent.scripts")


def _pipes_warning(seconds: float, holders: Sequence[str]) -> str:
    who = f" They are held by: {', '.join(holders)}." if holders else ""
    return (
        f"WARNING: script exited successfully, but output pipes were not closed after {seconds:g}s.{who} "
        "A program that goes on in the background should have its output redirected, for example with "
        '">/dev/null 2>&1", or be a script of its own; its next write may end it.'
    )


def _append_line(fd: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the line is in the log stream anyway
        os.write(fd, f"{text}\n".encode(errors="replace"))
