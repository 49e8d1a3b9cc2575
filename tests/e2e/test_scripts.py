"""Scripts as real processes under real keepers."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import stat
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from agent.api.manifest import Script
from agent.api.proto import agent_pb2 as pb
from agent.clock import SystemClock
from agent.process import ProcessId
from agent.scripts import Limits, PhaseResult, ScriptRunner
from tests.scripts.support import Context, PipeCaptures, eventually, script

QUICK = Limits(hangup=0.5, drain=0.5)


@dataclass
class Workshop:
    """A runner's surroundings in a directory of the test's own."""

    root: Path
    captures: PipeCaptures = field(default_factory=PipeCaptures)
    timings: list[pb.Timing] = field(default_factory=list)
    results: list[tuple[UUID, int, PhaseResult]] = field(default_factory=list)
    runners: list[ScriptRunner] = field(default_factory=list)

    def runner(self, *scripts: Script, limits: Limits = QUICK, **more: Any) -> ScriptRunner:
        settings: dict[str, Any] = {
            "runs_dir": self.root / "runs",
            "data_dir": self.root / "data",
            "log_dir": self.root / "log",
            "captures": self.captures,
            "context": Context(self.root),
            "completed": self.timings.append,
            "clock": SystemClock(),
            "life": "life",
            "on_result": lambda *result: self.results.append(result),
            "limits": limits,
        }
        runner = ScriptRunner(scripts, **(settings | more))
        self.runners.append(runner)
        return runner

    def timing(self, of: Script) -> pb.Timing:
        (found,) = [timing for timing in self.timings if timing.script_id == of.id.bytes]
        return found

    def log_of(self, of: Script) -> Path:
        return self.root / "log" / f"coder-script-{of.log_source_id}.log"


def children() -> set[int]:
    """Processes whose parent we are: keepers that were not let go."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        found = {int(pid) for pid in file.read().split()}
    for task in os.listdir(f"/proc/{os.getpid()}/task"):
        try:
            with open(f"/proc/{os.getpid()}/task/{task}/children") as file:
                found |= {int(pid) for pid in file.read().split()}
        except FileNotFoundError:
            continue  # a thread that has just ended
    return found


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the one of the listing itself
    return {entry for entry in found if "pipe:" in entry or "memfd" in entry or "/log/" in entry or "/runs/" in entry}


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    before_children, before_fds = children(), descriptors()
    yield
    assert children() <= before_children
    assert descriptors() <= before_fds
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []


@pytest.fixture
async def shop(tmp_path: Path, nothing_left: None) -> AsyncIterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    for runner in shop.runners:
        await runner.aclose()


@pytest.mark.spec("daemon", 28)
async def test_streams_and_log_file(shop: Workshop) -> None:
    hello = script("echo hello; echo oops >&2", run_on_start=True)
    runner = shop.runner(hello)
    await runner.prepare()
    assert await runner.run_start() is PhaseResult.OK
    capture = shop.captures.of(hello)
    assert (bytes(capture.stdout), bytes(capture.stderr)) == (b"hello\n", b"oops\n")
    assert sorted(shop.log_of(hello).read_text().split()) == ["hello", "oops"]
    assert stat.S_IMODE(shop.log_of(hello).stat().st_mode) == 0o600
    timing = shop.timing(hello)
    assert (timing.exit_code, timing.status, timing.stage) == (0, pb.Timing.OK, pb.Timing.START)
    assert shop.results == [(hello.id, pb.Timing.START, PhaseResult.OK)]


@pytest.mark.spec("daemon", 28)
@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("", "log/coder-script-{source}.log"),
        ("deep/er/x.log", "log/deep/er/x.log"),
        ("~/home.log", "home/home.log"),
        ("$PLACE/var.log", "elsewhere/var.log"),
        ("{root}/abs/x.log", "abs/x.log"),
    ],
)
async def test_log_paths(shop: Workshop, monkeypatch: pytest.MonkeyPatch, given: str, there: str) -> None:
    monkeypatch.setenv("HOME", str(shop.root / "home"))
    monkeypatch.setenv("PLACE", str(shop.root / "elsewhere"))
    echo = script("echo there", run_on_start=True, log_path=given.format(root=shop.root))
    assert await shop.runner(echo).run_start() is PhaseResult.OK
    path = shop.root / there.format(source=echo.log_source_id)
    assert path.read_text() == "there\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_log_path_that_is_a_directory_fails_that_script_only(shop: Workshop) -> None:
    (shop.root / "taken").mkdir()
    bad = script("echo never", run_on_start=True, log_path=str(shop.root / "taken"))
    good = script("echo fine", run_on_start=True)
    assert await shop.runner(bad, good).run_start() is PhaseResult.ERROR
    (text,) = shop.captures.errors(bad)
    assert "is a directory" in text
    assert str(shop.root / "taken") in text
    assert bytes(shop.captures.of(good).stdout) == b"fine\n"
    assert [timing.script_id for timing in shop.timings] == [good.id.bytes]


@pytest.mark.spec("daemon", 30)
async def test_script_directories_and_environment(shop: Workshop) -> None:
    first = script('printf "#!/bin/sh\\necho tool" > $CODER_SCRIPT_BIN_DIR/tool', run_on_start=True)
    second = script("env; stat -c %a $CODER_SCRIPT_DATA_DIR $CODER_SCRIPT_BIN_DIR; pwd", run_on_stop=True)
    runner = shop.runner(first, second)
    await runner.prepare()
    assert await runner.run_start() is PhaseResult.OK
    assert await runner.run_stop() is PhaseResult.OK
    lines = shop.captures.of(second).stdout.decode().splitlines()
    data = shop.root / "data" / "coder-script-data"
    assert f"CODER_SCRIPT_DATA_DIR={data}/{second.log_source_id}" in lines
    assert f"CODER_SCRIPT_BIN_DIR={data}/bin" in lines
    assert lines[-3:] == ["700", "700", str(shop.root)]
    assert (data / "bin" / "tool").exists()
    # Nothing but what the context gave, the two variables, and what the shell itself sets.
    names = {line.split("=")[0] for line in lines[:-3]}
    assert names - {"PWD", "OLDPWD", "_", "SHLVL"} == {
        "PATH",
        "FROM_CONTEXT",
        "CODER_SCRIPT_DATA_DIR",
        "CODER_SCRIPT_BIN_DIR",
    }


@pytest.mark.spec("daemon", 31)
@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("#!/bin/sh\necho sh", "sh\n"),
        ("  #!/bin/bash -e\nfalse\necho never", ""),
        ('#!/usr/bin/env python3\nprint("python")', "python\n"),
        ("echo shell", "shell\n"),
        ("", ""),
    ],
)
async def test_interpreters(shop: Workshop, text: str, printed: str) -> None:
    it = script(text, run_on_start=True)
    result = await shop.runner(it).run_start()
    assert shop.captures.of(it).stdout.decode() == printed
    assert result is (PhaseResult.ERROR if "false" in text else PhaseResult.OK)


@pytest.mark.spec("daemon", 31)
async def test_empty_shebang_is_told(shop: Workshop) -> None:
    it = script("#!\necho x", run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.ERROR
    assert "empty shebang" in shop.captures.errors(it)[0]
    assert not shop.timings


async def test_long_script_goes_through_a_private_file(shop: Workshop) -> None:
    it = script("stat -c %a $0 $(dirname $0)\n" + "# padding\n" * 20_000, run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.OK
    assert shop.captures.of(it).stdout == b"600\n700\n"


async def test_interpreter_that_is_not_there(shop: Workshop) -> None:
    it = script("#!/no/such/interpreter\n", run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.ERROR
    assert shop.captures.errors(it) == ['cannot run "/no/such/interpreter": No such file or directory']
    assert (shop.timing(it).exit_code, shop.timing(it).status) == (255, pb.Timing.EXIT_FAILURE)
    assert "no/such" in shop.log_of(it).read_text()


async def test_working_directory_that_vanished(shop: Workshop) -> None:
    it = script("echo x", run_on_start=True)
    runner = shop.runner(it, context=Context(shop.root / "gone"))
    assert await runner.run_start() is PhaseResult.ERROR
    assert shop.captures.errors(it) == [
        f'cannot enter the working directory "{shop.root}/gone": No such file or directory'
    ]


@pytest.mark.spec("daemon", 32)
async def test_timeout_hangs_up_the_group(shop: Workshop) -> None:
    it = script("sleep 1000 & echo $!; sleep 1000", run_on_start=True, timeout=0.2)
    began = time.monotonic()
    assert await shop.runner(it).run_start() is PhaseResult.TIMEOUT
    assert time.monotonic() - began < QUICK.hangup + 2
    assert (shop.timing(it).exit_code, shop.timing(it).status) == (255, pb.Timing.TIMED_OUT)
    await eventually(lambda: not os.path.exists(f"/proc/{int(shop.captures.of(it).stdout)}"))


@pytest.mark.spec("daemon", 32)
async def test_script_that_ignores_hangup_is_killed_with_its_group(shop: Workshop) -> None:
    it = script("trap '' HUP; sh -c 'echo $$; sleep 1000' & wait; sleep 1000", run_on_start=True, timeout=0.3)
    began = time.monotonic()
    assert await shop.runner(it).run_start() is PhaseResult.TIMEOUT
    assert 0.7 < time.monotonic() - began < 3
    child = int(shop.captures.of(it).stdout)
    await eventually(lambda: not os.path.exists(f"/proc/{child}"))


@pytest.mark.spec("daemon", 22)
async def test_tiny_timeout_is_a_timeout(shop: Workshop) -> None:
    it = script("sleep 3", run_on_start=True, timeout=0.001)
    assert await shop.runner(it).run_start() is PhaseResult.TIMEOUT


@pytest.mark.spec("daemon", 22)
@pytest.mark.parametrize(
    ("text", "timeout", "result"),
    [("false", 0.0, PhaseResult.ERROR), ("sleep 3", 0.1, PhaseResult.TIMEOUT), ("true", 0.0, PhaseResult.OK)],
)
async def test_results_of_stop_scripts(shop: Workshop, text: str, timeout: float, result: PhaseResult) -> None:
    assert await shop.runner(script(text, run_on_stop=True, timeout=timeout)).run_stop() is result


@pytest.mark.spec("daemon", 33)
async def test_pipes_left_open(shop: Workshop) -> None:
    it = script("sleep 60 & echo $!; exit 0", run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.ERROR
    holder = int(shop.captures.of(it).stdout)
    try:
        (warning,) = shop.captures.of(it).notes
        assert warning.startswith(
            "WARNING: script exited successfully, but output pipes were not closed after 0.5s. "
            f"They are held by: {holder} (sleep)."
        )
        assert (shop.timing(it).exit_code, shop.timing(it).status) == (255, pb.Timing.PIPES_LEFT_OPEN)
        os.kill(holder, 0)  # it was not signalled
    finally:
        os.kill(holder, signal.SIGKILL)


@pytest.mark.spec("daemon", 33)
async def test_background_program_with_redirected_output(shop: Workshop) -> None:
    it = script("sleep 60 >/dev/null 2>&1 & echo $!", run_on_start=True)
    began = time.monotonic()
    assert await shop.runner(it, limits=Limits()).run_start() is PhaseResult.OK
    assert time.monotonic() - began < 3
    os.kill(int(shop.captures.of(it).stdout), signal.SIGKILL)


async def test_failure_with_pipes_open_keeps_its_status(shop: Workshop) -> None:
    it = script("sleep 60 & echo $!; exit 7", run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.ERROR
    os.kill(int(shop.captures.of(it).stdout), signal.SIGKILL)
    assert shop.captures.of(it).notes == []
    assert (shop.timing(it).exit_code, shop.timing(it).status) == (7, pb.Timing.EXIT_FAILURE)


@pytest.mark.spec("daemon", 34)
@pytest.mark.parametrize(("text", "code"), [("exit 3", 3), ("kill -9 $$", -1)])
async def test_exit_codes_and_stages(shop: Workshop, text: str, code: int) -> None:
    it = script(text, run_on_start=True, run_on_stop=True)
    runner = shop.runner(it)
    assert await runner.run_start() is PhaseResult.ERROR
    assert await runner.run_stop() is PhaseResult.ERROR
    assert [timing.stage for timing in shop.timings] == [pb.Timing.START, pb.Timing.STOP]
    for timing in shop.timings:
        assert (timing.exit_code, timing.status) == (code, pb.Timing.EXIT_FAILURE)
        assert 0 < timing.start.ToNanoseconds() <= timing.end.ToNanoseconds()


@pytest.mark.spec("daemon", 35)
async def test_start_scripts_run_in_parallel(shop: Workshop) -> None:
    began = time.monotonic()
    scripts = [script("sleep 1", run_on_start=True) for _ in range(3)]
    assert await shop.runner(*scripts).run_start() is PhaseResult.OK
    assert time.monotonic() - began < 2


@pytest.mark.spec("daemon", 27)
async def test_interrupted_start_script_gets_a_hangup(shop: Workshop) -> None:
    it = script("trap 'echo bye; exit 0' HUP; echo ready; while :; do sleep 0.05; done", run_on_start=True)
    runner = shop.runner(it)
    phase = asyncio.create_task(runner.run_start())
    await eventually(lambda: bool(shop.captures.by_source) and b"ready" in shop.captures.of(it).stdout)
    await runner.interrupt_start()
    assert await phase is PhaseResult.ERROR
    assert b"bye" in shop.captures.of(it).stdout


async def test_much_output_arrives_whole(shop: Workshop) -> None:
    it = script("seq 1 200000", run_on_stop=True)
    assert await shop.runner(it).run_stop() is PhaseResult.OK
    assert bytes(shop.captures.of(it).stdout) == b"".join(b"%d\n" % number for number in range(1, 200_001))


async def test_script_starts_with_clean_signals_and_descriptors(shop: Workshop) -> None:
    it = script("grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; cat", run_on_start=True)
    assert await shop.runner(it).run_start() is PhaseResult.OK
    lines = shop.captures.of(it).stdout.decode().split()
    assert lines == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "4"]  # 0, 1, 2 and that of the listing


async def test_runs_directory_that_cannot_be_made(shop: Workshop) -> None:
    (shop.root / "file").write_text("")
    it = script("echo fine", run_on_start=True)
    assert await shop.runner(it, runs_dir=shop.root / "file" / "runs").run_start() is PhaseResult.OK


@pytest.mark.spec("daemon", 36)
async def test_cron_script_fires_after_the_start_phase(shop: Workshop) -> None:
    it = script("echo tick", cron="* * * * * *")
    bad = script("echo never", cron="1-2-3 * * * *")
    runner = shop.runner(it, bad)
    await runner.prepare()
    assert 'more than one "-"' in shop.captures.errors(bad)[0]
    await asyncio.sleep(1.1)
    assert not shop.timings
    runner.start_cron()
    await eventually(lambda: len(shop.timings) >= 2)
    assert {timing.stage for timing in shop.timings} == {pb.Timing.CRON}
    assert shop.log_of(it).read_text() == "tick\n"
    assert bad.log_source_id not in shop.captures.by_source


@pytest.mark.parametrize("after", [0.0, 0.002, 0.01, 0.03, 0.3, 0.8])
async def test_cancelled_in_any_phase_leaves_nothing(shop: Workshop, after: float) -> None:
    mark = f"1000.{os.getpid()}{round(after * 1000)}"  # no other process sleeps for so long
    scripts = [script(f"sleep {mark} & exec sleep {mark}", run_on_start=True) for _ in range(8)]
    scripts += [script(f"sleep {mark} & exit 0", run_on_start=True) for _ in range(2)]
    runner = shop.runner(*scripts, limits=Limits(drain=5, hangup=5))
    phase = asyncio.create_task(runner.run_start())
    await asyncio.sleep(after)
    phase.cancel()
    with pytest.raises(asyncio.CancelledError):
        await phase
    await eventually(lambda: not running(mark))


async def test_close_ends_what_runs_and_refuses_the_rest(shop: Workshop) -> None:
    cron = script("echo up; exec sleep 1000", cron="* * * * * *")
    late = script("echo late", run_on_stop=True)
    runner = shop.runner(cron, late)
    await runner.prepare()
    runner.start_cron()
    await eventually(lambda: bool(shop.captures.by_source) and shop.captures.of(cron).stdout == b"up\n")
    await runner.aclose()
    await runner.aclose()
    assert shop.timing(cron).exit_code == 255
    assert await runner.run_stop() is PhaseResult.ERROR
    assert late.log_source_id not in shop.captures.by_source


async def test_keeper_that_is_killed_costs_only_the_exit_status(shop: Workshop) -> None:
    it = script("trap 'echo hup; exit' HUP; echo $PPID; while :; do sleep 0.05; done", run_on_start=True)
    phase = asyncio.create_task(shop.runner(it).run_start())
    await eventually(lambda: bool(shop.captures.by_source) and b"\n" in shop.captures.of(it).stdout)
    os.kill(int(shop.captures.of(it).stdout), signal.SIGKILL)
    assert await phase is PhaseResult.ERROR
    assert shop.captures.of(it).stdout.endswith(b"\nhup\n")
    assert "process that kept this script was killed" in shop.captures.of(it).notes[0]
    assert (shop.timing(it).exit_code, shop.timing(it).status) == (255, pb.Timing.EXIT_FAILURE)


async def test_keeper_ignores_what_would_end_it(shop: Workshop) -> None:
    it = script("for sig in HUP INT TERM QUIT USR2; do kill -$sig $PPID; done; sleep 0.2; exit 9", run_on_start=True)
    await shop.runner(it).run_start()
    assert shop.timing(it).exit_code == 9


async def test_environment_that_cannot_be(shop: Workshop) -> None:
    nameless, torn = script("echo x", run_on_start=True), script("echo x", run_on_start=True)
    assert await shop.runner(nameless, context=Context(shop.root, {"": "x"})).run_start() is PhaseResult.ERROR
    assert shop.captures.errors(nameless) == ['cannot run "/bin/sh": Invalid argument']
    assert await shop.runner(torn, context=Context(shop.root, {"A": "x\0y"})).run_start() is PhaseResult.ERROR
    assert "NUL character in the environment" in shop.captures.errors(torn)[0]


async def test_many_runs_leave_no_descriptors(shop: Workshop) -> None:
    it = script("echo x", run_on_stop=True)
    runner = shop.runner(*[it] * 5)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert await runner.run_stop() is PhaseResult.OK
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(shop.timings) == 50


def running(mark: str) -> bool:
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


async def test_no_descriptor_is_needed_to_end_a_script(shop: Workshop) -> None:
    it = script("trap '' HUP; echo begun; while :; do sleep 0.05; done", run_on_start=True, timeout=0.5)
    phase = asyncio.create_task(shop.runner(it).run_start())
    await eventually(lambda: bool(shop.captures.by_source) and b"\n" in shop.captures.of(it).stdout)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        await eventually(lambda: bool(shop.timings))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await phase is PhaseResult.TIMEOUT


async def test_script_that_started_and_cannot_be_kept_is_killed(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"{time.time_ns()}"
    known = ProcessId.of

    def of(pid: int) -> ProcessId | None:
        if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return known(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ProcessId, "of", of)
    it = script(f"sleep 1000 {mark} >/dev/null 2>&1; sleep 1000", run_on_start=True)
    with structlog.testing.capture_logs():
        assert await shop.runner(it).run_start() is PhaseResult.ERROR
    await eventually(lambda: not running(mark))
