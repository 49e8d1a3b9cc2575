from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.manifest import Manifest, MetadataDescription, from_proto
from agent.api.proto import agent_pb2 as pb
from agent.monitor import MetadataCollector
from agent.monitor import metadata as module
from agent.monitor.metadata import MAX_VALUE, describe, signal_name
from agent.process.bounded import Job, Outcome, StartError
from agent.rpc import ConnectionLostError, RpcError, UnsupportedError
from agent.testing import ManualClock, settle
from tests.monitor.fakes import FakeApi

Start = Callable[..., "asyncio.Task[None]"]


def item(key: str, interval: int, timeout: int = 0, script: str | None = None) -> MetadataDescription:
    return MetadataDescription(key, key, script or f"run {key}", interval, timeout)


def manifest(*descriptions: MetadataDescription) -> Manifest:
    message = pb.Manifest(agent_id=UUID(int=1).bytes, workspace_id=UUID(int=2).bytes)
    for one in descriptions:
        added = message.metadata.add(key=one.key, display_name=one.display_name, script=one.script)
        # Seconds travel in the nanosecond count.
        added.interval.nanos, added.timeout.nanos = one.interval, one.timeout
    return from_proto(message)[0]


class Context:
    def environment(self) -> dict[str, str]:
        return {"A": "1"}

    def shell(self) -> str:
        return "/bin/sh"

    def directory(self) -> str:
        return "/"


class Commands:
    """Stands in for processes: every command takes `takes` seconds and prints how often it ran."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.starts: list[tuple[float, str]] = []
        self.limits: dict[str, float] = {}
        self.takes = 0.0
        self.ending: Callable[[str], Outcome] | None = None
        self.running = 0

    async def run(self, prepare: Callable[[], Job], *, limit: float, max_output: int, clock: ManualClock) -> Outcome:
        script = prepare().command.argv[-1]
        self.starts.append((self.clock.now(), script))
        self.limits[script] = limit
        self.running += 1
        try:
            if self.takes:
                await self.clock.sleep(self.takes)
            if self.ending is not None:
                return self.ending(script)
            text = str(len(self.starts)).encode()
            return Outcome(text, len(text), 0, timed_out=False)
        finally:
            self.running -= 1

    def times(self, key: str) -> list[float]:
        return [time for time, script in self.starts if script == f"run {key}"]


@pytest.fixture
def commands(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands(clock)
    monkeypatch.setattr(module, "run_command", fake.run)
    return fake


@pytest.fixture
async def start(clock: ManualClock) -> AsyncIterator[Start]:
    tasks: list[asyncio.Task[None]] = []

    def begin(api: FakeApi, *descriptions: MetadataDescription) -> asyncio.Task[None]:
        collector = MetadataCollector(Context(), clock)
        tasks.append(asyncio.create_task(collector.run(api, manifest(*descriptions))))
        return tasks[-1]

    yield begin
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


def keys(request: pb.BatchUpdateMetadataRequest) -> list[str]:
    return [entry.key for entry in request.metadata]


async def test_without_descriptions_nothing_runs(commands: Commands, start: Start, clock: ManualClock) -> None:
    task = start(FakeApi())
    await settle()
    assert task.done()
    assert clock.sleepers == 0


async def test_collection_starts_at_once_and_the_report_comes_after_a_second(
    commands: Commands, start: Start, clock: ManualClock
) -> None:
    api = FakeApi()
    wall = clock.wall()
    start(api, item("a", 10))
    await settle()
    assert commands.times("a") == [0]
    await clock.advance(0.999)
    assert api.requests == []
    await clock.advance(0.001)
    (request,) = api.requests
    (entry,) = request.metadata
    assert (entry.key, entry.result.value, entry.result.error) == ("a", "1", "")
    assert entry.result.HasField("collected_at")
    assert entry.result.collected_at.ToNanoseconds() == wall


@pytest.mark.spec("daemon", 39)
async def test_keys_are_collected_at_their_intervals(commands: Commands, start: Start, clock: ManualClock) -> None:
    start(FakeApi(), item("once", 0), item("two", 2), item("five", 5))
    await clock.advance(11)
    assert commands.times("once") == [0]
    assert commands.times("two") == [0, 2, 4, 6, 8, 10]
    assert commands.times("five") == [0, 5, 10]


async def test_results_of_one_second_are_one_batch(commands: Commands, start: Start, clock: ManualClock) -> None:
    api = FakeApi()
    start(api, item("a", 0), item("b", 0), item("c", 3))
    await clock.advance(10)
    assert [keys(request) for request in api.requests] == [["a", "b", "c"], ["c"], ["c"], ["c"]]


async def test_nothing_wakes_up_while_nothing_is_due(commands: Commands, start: Start, clock: ManualClock) -> None:
    start(FakeApi(), item("a", 3600))
    await clock.advance(1)
    assert clock.sleepers == 1
    (when, *_), *_ = clock._sleepers
    assert when == 3600


async def test_a_key_never_runs_twice_at_a_time(commands: Commands, start: Start, clock: ManualClock) -> None:
    commands.takes = 4.5
    start(FakeApi(), item("a", 2, timeout=60))
    await clock.advance(11)
    assert commands.times("a") == [0, 5, 10]


@pytest.mark.spec("daemon", 39)
async def test_a_slow_key_holds_up_no_other(commands: Commands, start: Start, clock: ManualClock) -> None:
    def ending(script: str) -> Outcome:
        return Outcome(b"", 0, 0, timed_out=False)

    commands.ending = ending
    slow = commands.run

    async def run(prepare: Callable[[], Job], **arguments: object) -> Outcome:
        if prepare().command.argv[-1] == "run slow":
            await asyncio.Event().wait()
        return await slow(prepare, **arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_command", run)
        start(FakeApi(), item("slow", 1), item("quick", 1))
        await clock.advance(3)
    assert commands.times("quick") == [0, 1, 2, 3]


@pytest.mark.spec("daemon", 39)
async def test_limits(commands: Commands, start: Start, clock: ManualClock) -> None:
    start(FakeApi(), item("timeout", 10, 4), item("interval", 10), item("neither", 0))
    await settle()
    assert commands.limits == {"run timeout": 4, "run interval": 10, "run neither": 3}


@pytest.mark.spec("agent-api", 34)
def test_durations_are_seconds_in_the_nanosecond_count() -> None:
    message = pb.Manifest(agent_id=UUID(int=1).bytes, workspace_id=UUID(int=2).bytes)
    message.metadata.append(pb.WorkspaceAgentMetadata.Description.FromString(bytes.fromhex("2202100a2a021001")))
    (description,) = from_proto(message)[0].metadata
    assert (description.interval, description.timeout) == (10, 1)


@pytest.mark.spec("daemon", 39)
async def test_at_most_one_report_is_in_flight(commands: Commands, start: Start, clock: ManualClock) -> None:
    api = FakeApi()
    commands.takes = 0.1
    start(api, item("a", 1))
    api.hold.clear()
    await clock.advance(5)
    assert len(api.requests) == 1
    api.hold.set()
    await clock.advance(1)
    assert len(api.requests) == 2
    assert [entry.result.value for entry in api.requests[1].metadata] == ["6"]  # the newest that had ended


async def test_a_rejected_batch_is_logged_and_not_repeated(
    commands: Commands, start: Start, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeApi(RpcError("metadata keys of 7000 bytes exceeded 6144 bytes"))
    task = start(api, item("a", 10))
    await clock.advance(9)
    assert len(api.requests) == 1
    assert "the server did not take the metadata a: metadata keys of 7000 bytes" in caplog.text
    await clock.advance(2)
    assert len(api.requests) == 2
    assert not task.done()


@pytest.mark.parametrize("error", [ConnectionLostError("gone"), UnsupportedError("unknown rpc")])
async def test_the_end_of_the_connection_ends_the_routine(
    commands: Commands, start: Start, clock: ManualClock, error: Exception
) -> None:
    commands.takes = 0.5
    task = start(FakeApi(error), item("a", 1))
    await clock.advance(1)
    with pytest.raises(type(error)):
        await task
    assert commands.running == 0


async def test_cancelling_ends_what_runs(commands: Commands, start: Start, clock: ManualClock) -> None:
    commands.takes = 100
    task = start(FakeApi(), item("a", 1), item("b", 1))
    await settle()
    assert commands.running == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert commands.running == 0


async def test_every_run_starts_from_scratch(commands: Commands, start: Start, clock: ManualClock) -> None:
    collector = MetadataCollector(Context(), clock)
    for _ in range(2):
        task = asyncio.create_task(collector.run(FakeApi(), manifest(item("a", 0))))
        await clock.advance(1)
        task.cancel()
    assert commands.times("a") == [0, 1]


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (StartError("No such file or directory: /bin/zsh"), "start cmd: No such file or directory: /bin/zsh"),
        (LookupError("no shell for user x"), "create cmd: no shell for user x"),
        (OSError("bad name \udcff\0"), "create cmd: bad name ?\ufffd"),
    ],
)
async def test_what_keeps_a_command_from_running_is_its_error(
    commands: Commands, start: Start, clock: ManualClock, failure: Exception, text: str
) -> None:
    def ending(_: str) -> Outcome:
        raise failure

    commands.ending = ending
    commands.takes = 0.1
    api = FakeApi()
    start(api, item("a", 1))
    await clock.advance(2)
    assert [(r.metadata[0].result.value, r.metadata[0].result.error) for r in api.requests] == [("", text)] * 2


async def test_a_bad_shebang_is_its_keys_error(start: Start, clock: ManualClock) -> None:
    api = FakeApi()
    done = asyncio.Event()
    api.called = done.set
    start(api, item("a", 0, script="#!"))
    while not clock.sleepers:
        await asyncio.sleep(0.001)
    await clock.advance(1)
    await done.wait()
    assert api.requests[0].metadata[0].result.error.startswith("create cmd: empty shebang")


@pytest.mark.spec("daemon", 39)
async def test_a_real_command_runs_in_the_agents_environment(start: Start, clock: ManualClock) -> None:
    api = FakeApi()
    done = asyncio.Event()
    api.called = done.set
    start(api, item("a", 0, script="echo $A $0; pwd; printf 'x\\0\\377'; exit 2"))
    while not done.is_set():
        await asyncio.sleep(0.001)
        await clock.advance(0.01)
    result = api.requests[0].metadata[0].result
    assert result.value == "1 /bin/sh\n/\nx\ufffd\ufffd"
    assert result.error == "run cmd: exit status 2"


@pytest.mark.spec("daemon", 39)
@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(b"", 0, 0, False), ""),
        (Outcome(b"", 0, 1, False), "run cmd: exit status 1"),
        (Outcome(b"", 0, -9, True), "run cmd: signal: killed\ncontext deadline exceeded"),
        (Outcome(b"", 0, -15, False), "run cmd: signal: terminated"),
        (Outcome(b"", MAX_VALUE + 1, 0, False), "run cmd: output truncated from 10241 to 10240 bytes"),
        (
            Outcome(b"", 20000, -9, True),
            "run cmd: signal: killed\noutput truncated from 20000 to 10240 bytes\ncontext deadline exceeded",
        ),
        (Outcome(b"", 0, None, True), "run cmd: signal: killed, but it has not ended\ncontext deadline exceeded"),
    ],
)
def test_error_texts(outcome: Outcome, text: str) -> None:
    assert describe(outcome) == text


@given(st.integers(1, 200))
def test_every_signal_has_a_name(number: int) -> None:
    assert signal_name(number)


@given(st.binary(max_size=64))
def test_any_output_is_a_protobuf_string(output: bytes) -> None:
    text = module._text(output.decode("utf-8", "replace"))
    assert "\0" not in text
    message = pb.WorkspaceAgentMetadata.Result(value=text)
    assert pb.WorkspaceAgentMetadata.Result.FromString(message.SerializeToString()).value == text
