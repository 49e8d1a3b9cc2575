"""The room as a whole: real pipes, real files, the real thread."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.api.proto import agent_pb2 as pb
from agent.clock import SystemClock
from agent.logs import Capture, LogService, Redactor, SpoolLimits
from tests.logs.kit import A, B, FakeServer, ListLogger

LIMIT = 10.0


class _Script:
    """The writing ends of what a script has, and the log file."""

    def __init__(
        self, service: LogService, log: Path, run_id: UUID | None = None, source: UUID = A, flags: int = 0
    ) -> None:
        self.log = log
        self.run_id = run_id or uuid4()
        log_fd = os.open(log, os.O_RDWR | os.O_CREAT | flags, 0o600)
        (out, self.stdout), (err, self.stderr) = os.pipe(), os.pipe()
        self.readers = out, err
        self.capture: Capture = service.start(self.run_id, source, log_fd, out, err)

    def write(self, data: bytes) -> None:
        os.write(self.stdout, data)

    def end(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)

    async def finish(self) -> None:
        self.end()
        await asyncio.wait_for(self.capture.wait_eof(), LIMIT)
        await self.capture.finish()


@asynccontextmanager
async def running(service: LogService, server: FakeServer) -> AsyncIterator[LogService]:
    """Open, with a connection; all is sent at the end."""
    service.open()
    task = asyncio.create_task(service.send(server))
    try:
        yield service
        await asyncio.wait_for(service.drained(), LIMIT)
    finally:
        task.cancel()
        await service.aclose()


def make(directory: Path | None, **options: object) -> LogService:
    return LogService(directory, SystemClock(), logger=ListLogger(), **options)  # type: ignore[arg-type]


@pytest.fixture(params=["disk", "memory", "disk without splice"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    if request.param == "disk without splice":

        def splice(*arguments: object, **options: object) -> int:
            raise OSError(errno.EINVAL, "not here")

        monkeypatch.setattr(os, "splice", splice)
    return None if request.param == "memory" else tmp_path / "state"


@pytest.mark.spec("daemon", 28, 29)
async def test_output_reaches_the_log_file_and_the_server(tmp_path: Path, state: Path | None) -> None:
    server = FakeServer()
    async with running(make(state), server) as service:
        script = _Script(service, tmp_path / "log")
        await asyncio.to_thread(script.write, b"a\r\nb\n\nc\0\xff")
        await asyncio.to_thread(os.write, script.stderr, b"wrong\n")
        await script.finish()
    lines = list(zip(server.lines[A], server.levels[A], strict=True))
    assert [line for line, level in lines if level == pb.Log.INFO] == ["a", "b", "", "c❌❌"]
    assert [line for line, level in lines if level == pb.Log.ERROR] == ["wrong"]
    assert sorted((tmp_path / "log").read_bytes()) == sorted(b"a\r\nb\n\nc\0\xffwrong\n")
    assert service.counters.sent_lines == 5
    assert service.counters.memory_only == (state is None)
    if state is not None:
        assert list(state.glob("*/*")) == []


@pytest.mark.spec("daemon", 29)
async def test_a_long_line_is_left_out_with_a_word_and_is_in_the_log_file(tmp_path: Path, state: Path | None) -> None:
    server = FakeServer()
    async with running(make(state), server) as service:
        script = _Script(service, tmp_path / "log")
        await asyncio.to_thread(_write_all, script.stdout, b"before\n" + b"x" * 2**21 + b"\nafter\n")
        await script.finish()
    assert server.lines[A][0] == "before"
    assert server.lines[A][-1] == "after"
    assert len(server.lines[A]) == 3
    assert "more than 1048555 bytes" in server.lines[A][1]
    assert (tmp_path / "log").stat().st_size == 2**21 + 14


@pytest.mark.spec("agent-api", 31)
async def test_a_note_that_is_too_long_is_dropped_while_its_neighbours_are_sent(tmp_path: Path) -> None:
    server = FakeServer()
    async with running(make(tmp_path), server) as service:
        for text in ("before", "x" * 1_048_575, "after"):
            service.note(A, pb.Log.INFO, text)
    assert server.lines[A] == ["before", "after"]


async def test_secrets_reach_neither_the_server_nor_the_disk(tmp_path: Path) -> None:
    server = FakeServer()
    service = make(tmp_path / "state", redactor=Redactor(["hunter22"]))
    service.open()
    service.redact(["another secret"])
    script = _Script(service, tmp_path / "log")
    for piece in (b"password: hun", b"ter22\nx another", b" secret x\nhunter2"):
        await asyncio.to_thread(script.write, piece)
    script.capture.note("it was hunter22")
    service.note(B, pb.Log.WARN, "hunter22 again")
    await script.finish()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter22" in path.read_bytes()]
    async with running(service, server):
        pass
    assert sorted(server.lines[A]) == ["hunter2", "it was ***", "password: ***", "x *** x"]
    assert server.lines[B] == ["*** again"]


async def test_a_log_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    server = FakeServer()
    async with running(make(tmp_path / "state"), server) as service:
        full = os.open("/dev/full", os.O_WRONLY)
        reader, writer = os.pipe()
        capture = service.start(uuid4(), A, full, reader, None)
        for piece in (b"one\n", b"two\n"):
            await asyncio.to_thread(os.write, writer, piece)
        os.close(writer)
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
    assert [line for line in server.lines[A] if not line.startswith("[agent]")] == ["one", "two"]
    assert len(server.lines[A]) == 3


async def test_pipes_that_stay_open_are_closed_and_what_they_hold_is_taken(tmp_path: Path) -> None:
    server = FakeServer()
    async with running(make(tmp_path / "state"), server) as service:
        script = _Script(service, tmp_path / "log")
        await asyncio.to_thread(script.write, b"no newline")
        script.capture.note("WARNING: pipes left open")
        await script.capture.finish()
        await script.capture.finish()
        script.capture.note("too late")
        with pytest.raises(BrokenPipeError):
            await asyncio.to_thread(script.write, b"nobody reads")
        script.end()
    assert sorted(server.lines[A]) == ["WARNING: pipes left open", "no newline"]


async def test_streams_that_have_ended_already(tmp_path: Path) -> None:
    async with running(make(tmp_path / "state"), FakeServer()) as service:
        capture = service.start(uuid4(), A, None, None, None)
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()


@pytest.mark.spec("agent-api", 31)
async def test_the_limit_ends_sending_but_not_the_capture(tmp_path: Path) -> None:
    server = FakeServer()
    server.fail = lambda request: pb.BatchCreateLogsResponse(log_limit_exceeded=True)
    service = make(tmp_path / "state")
    service.open()
    script = _Script(service, tmp_path / "log")
    await asyncio.to_thread(script.write, b"one\n")
    await asyncio.wait_for(service.send(server), LIMIT)
    await asyncio.to_thread(script.write, b"two\n")
    await script.finish()
    await asyncio.wait_for(service.drained(), LIMIT)
    await asyncio.wait_for(service.send(server), LIMIT)
    await service.aclose()
    assert len(server.requests) == 1
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


async def _killed(service: LogService, script: _Script, ready: Callable[[], bool]) -> None:
    """Wait until the output is taken in, then end as SIGKILL would: nothing more is written."""
    async with asyncio.timeout(LIMIT):
        while not ready():
            await service._worker.call(lambda: None)
    await service.aclose()


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_a_later_process_goes_on_exactly_there(tmp_path: Path, acknowledged: bool) -> None:
    state, log = tmp_path / "state", tmp_path / "log"
    run, server = uuid4(), FakeServer()
    service = make(state, limits=SpoolLimits(segment=1000))
    service.open()
    sending = asyncio.create_task(service.send(server)) if acknowledged else None
    script = _Script(service, log, run)
    kept = [os.dup(reader) for reader in script.readers]  # as the keeper does
    expected = [f"line {number}" for number in range(500)]
    await asyncio.to_thread(script.write, "".join(line + "\n" for line in expected).encode() + b"unfin")
    await asyncio.to_thread(os.write, script.stderr, b"error without end")
    size = sum(len(line) + 1 for line in expected) + 5 + 17
    await _killed(service, script, lambda: log.stat().st_size == size)
    if sending is not None:
        sending.cancel()
    await asyncio.to_thread(script.write, b"ished\nin the pipe\n")

    async with running(make(state), server) as again:
        log_fd = os.open(log, os.O_RDWR)
        capture = again.start(run, A, log_fd, *kept)
        await asyncio.to_thread(os.write, script.stdout, b"to the next\n")
        script.end()
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
    got = server.lines[A]
    assert [line for line in got if line != "error without end"] == [
        *expected,
        "unfinished",
        "in the pipe",
        "to the next",
    ]
    assert len(got) == 504
    text = log.read_bytes()
    assert text.startswith("".join(line + "\n" for line in expected).encode())
    assert text.count(b"error without end") == 1
    assert text.count(b"unfin") == 1
    assert text.count(b"ished\nin the pipe\nto the next\n") == 1


async def test_a_later_process_goes_on_within_a_line_that_is_too_long(tmp_path: Path) -> None:
    state, log, run, server = tmp_path / "state", tmp_path / "log", uuid4(), FakeServer()
    service = make(state)
    service.open()
    script = _Script(service, log, run)
    kept = [os.dup(reader) for reader in script.readers]
    await asyncio.to_thread(_write_all, script.stdout, b"first\n" + b"x" * 6_000_000)
    await _killed(service, script, lambda: log.stat().st_size == 6_000_006)
    assert sum(path.stat().st_size for path in state.glob("capture/*/stdout.*")) < 4_500_000
    async with running(make(state), server) as again:
        capture = again.start(run, A, os.open(log, os.O_RDWR), *kept)
        await asyncio.to_thread(script.write, b"x" * 10 + b"\nlast\n")
        script.end()
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
    assert [line for line in server.lines[A] if not line.startswith("[agent]")] == ["first", "last"]
    assert log.stat().st_size == 6_000_006 + 10 + 6


async def test_a_log_file_that_two_scripts_share_is_never_cut(tmp_path: Path) -> None:
    state, log, server = tmp_path / "state", tmp_path / "log", FakeServer()
    service = make(state)
    service.open()
    runs = [(uuid4(), A), (uuid4(), B)]
    scripts = [_Script(service, log, run, source, flags=os.O_APPEND) for run, source in runs]
    kept = [[os.dup(reader) for reader in script.readers] for script in scripts]
    for turn in range(3):
        for number, script in enumerate(scripts):
            await asyncio.to_thread(script.write, b"%d %d\npartial" % (number, turn))
            size = (turn * 2 + number + 1) * 11
            while log.stat().st_size < size:
                await service._worker.call(lambda: None)
    await _killed(service, scripts[0], lambda: True)
    async with running(make(state), server) as again:
        captures = [
            again.start(run, source, os.open(log, os.O_RDWR | os.O_APPEND), *pipes)
            for (run, source), pipes in zip(runs, kept, strict=True)
        ]
        for script in scripts:
            script.end()
        for capture in captures:
            await asyncio.wait_for(capture.wait_eof(), LIMIT)
            await capture.finish()
    assert server.lines[A] == ["0 0", "partial0 1", "partial0 2", "partial"]
    assert server.lines[B] == ["1 0", "partial1 1", "partial1 2", "partial"]
    assert log.read_bytes().startswith(b"0 0\npartial1 0\npartial0 1\npartial1 1\npartial0 2\npartial1 2\npartial")


async def test_a_later_process_goes_on_though_the_log_is_a_device(tmp_path: Path) -> None:
    state, run, server = tmp_path / "state", uuid4(), FakeServer()
    service = make(state)
    service.open()
    script = _Script(service, Path("/dev/null"), run)
    kept = [os.dup(reader) for reader in script.readers]
    await asyncio.to_thread(script.write, b"unfin")
    await _killed(service, script, lambda: any(file.stat().st_size for file in state.glob("capture/*/stdout.*")))
    async with running(make(state), server) as again:
        capture = again.start(run, A, os.open("/dev/null", os.O_WRONLY), *kept)
        await asyncio.to_thread(script.write, b"ished\n")
        script.end()
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
    assert server.lines[A] == ["unfinished"]


async def test_what_is_not_of_a_run_does_not_keep_one_from_going_on(tmp_path: Path) -> None:
    state, run, server = tmp_path / "state", uuid4(), FakeServer()
    service = make(state)
    service.open()
    script = _Script(service, tmp_path / "log", run)
    await asyncio.to_thread(script.write, b"one\nhalf a line")
    await _killed(service, script, lambda: (tmp_path / "log").stat().st_size == 15)
    script.end()
    (state / "capture" / str(UUID(int=0))).write_bytes(b"stray")
    (state / "capture" / str(run) / "stdout.\u00b2").write_bytes(b"stray")
    async with running(make(state), server) as again:
        capture = again.start(run, A, None, None, None)
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
        assert not again.counters.memory_only
    assert server.lines[A] == ["one", "half a line"]


async def test_without_a_thread_for_syncing_the_capture_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    server = FakeServer()
    service = make(tmp_path / "state")
    async with running(service, server):
        service.note(A, pb.Log.INFO, "one")
        await asyncio.wait_for(service.drained(), LIMIT)
        await asyncio.sleep(0.2)  # the thread has been to its bed
        service.note(A, pb.Log.INFO, "two")
        await asyncio.wait_for(service.drained(), LIMIT)
    assert server.lines[A] == ["one", "two"]


async def test_sources_that_are_done_hold_no_descriptor(tmp_path: Path) -> None:
    server = FakeServer()
    async with running(make(tmp_path / "state"), server) as service:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1, 11):
            script = _Script(service, tmp_path / "log", source=UUID(int=number))
            await asyncio.to_thread(script.write, b"line\n")
            await script.finish()
        await asyncio.wait_for(service.drained(), LIMIT)
        assert len(os.listdir("/proc/self/fd")) == before
        assert list((tmp_path / "state").glob("spool/*/*.seg")) == []
        script = _Script(service, tmp_path / "log", source=UUID(int=1))
        await asyncio.to_thread(script.write, b"again\n")
        await script.finish()
    assert server.lines[UUID(int=1)] == ["line", "again"]


async def test_what_was_written_is_synced_off_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, synced = ListLogger(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fdatasync(descriptor: int) -> None:
        loop.call_soon_threadsafe(synced.set)
        raise OSError(errno.EIO, "medium gone")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    service = LogService(tmp_path, SystemClock(), logger=logger)
    service.open()
    service.note(A, pb.Log.INFO, "one")
    await asyncio.wait_for(synced.wait(), LIMIT)
    service.note(A, pb.Log.INFO, "two")
    await service.aclose()
    assert len(logger.warnings) == 1


async def test_a_run_whose_script_is_gone_is_drained_from_disk(tmp_path: Path) -> None:
    state, run, server = tmp_path / "state", uuid4(), FakeServer()
    service = make(state)
    service.open()
    script = _Script(service, tmp_path / "log", run)
    await asyncio.to_thread(script.write, b"one\nhalf a line")
    await _killed(service, script, lambda: (tmp_path / "log").stat().st_size == 15)
    script.end()
    async with running(make(state), server) as again:
        capture = again.start(run, A, None, None, None)
        await asyncio.wait_for(capture.wait_eof(), LIMIT)
        await capture.finish()
    assert server.lines[A] == ["one", "half a line"]


async def test_a_read_only_state_directory(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("not a directory")
    logger, server = ListLogger(), FakeServer()
    async with running(LogService(blocked, SystemClock(), logger=logger), server) as service:
        script = _Script(service, tmp_path / "log")
        await asyncio.to_thread(script.write, b"one\ntwo\n")
        await script.finish()
        assert service.counters.memory_only
    assert server.lines[A] == ["one", "two"]
    assert len(logger.warnings) == 1


async def test_many_runs_at_once_leak_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    server = FakeServer()
    async with running(make(tmp_path / "state"), server) as service:
        sources = [UUID(int=number) for number in range(1, 11)]
        scripts = [_Script(service, tmp_path / f"log{s.int}", source=s) for s in sources]
        for number in range(50):
            for script in scripts:
                script.write(b"line %d\n" % number)
        await asyncio.gather(*(script.finish() for script in scripts))
    for source in sources:
        assert server.lines[source] == [f"line {number}" for number in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before


async def test_cancelling_those_who_wait(tmp_path: Path) -> None:
    service = make(tmp_path / "state")
    service.open()
    script = _Script(service, tmp_path / "log")
    for waiting in (script.capture.wait_eof, script.capture.finish, service.drained):
        task = asyncio.create_task(waiting())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await script.capture.finish()
    script.end()
    await service.aclose()
    await service.aclose()
    await service.drained()
    await script.capture.finish()


async def test_nothing_was_opened(tmp_path: Path) -> None:
    service = make(tmp_path / "state")
    await service.drained()
    await service.aclose()
    assert service.counters.queued_lines == 0


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
