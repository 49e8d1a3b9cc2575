"""The terminal service with real shells; the tailnet is a stream in memory."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import structlog

from agent.clock import SystemClock
from agent.protocol.pty import Init, encode_request
from agent.terminal import Ending, Limits, TerminalService
from tests.e2e.terminal_client import Client, Context
from tests.terminal.oracle import Emulator, understood
from tests.terminal.support import MemoryStream

pytestmark = pytest.mark.timeout(60)


class Reports:
    def __init__(self) -> None:
        self.told: list[tuple[str, UUID, object]] = []

    def connected(self, connection: UUID, address: bytes) -> None:
        self.told.append(("connect", connection, address))

    def disconnected(self, connection: UUID, ending: Ending) -> None:
        self.told.append(("disconnect", connection, ending))


MakeService = Callable[..., Awaitable[TerminalService]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeService]:
    services: list[TerminalService] = []
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / ".bash_profile").write_text("PS1='$ '\n")

    async def make(
        *, limits: Limits = Limits(), shell: str = "/bin/bash", reports: Reports | None = None, **variables: str
    ) -> TerminalService:
        service = TerminalService(Context(tmp_path, shell, **variables), SystemClock(), limits=limits, reports=reports)
        await service.open(tmp_path / "state")
        services.append(service)
        return service

    yield make
    for service in services:
        await service.aclose()


def shell(**fields: object) -> Init:
    return Init(uuid4(), 24, 80, **fields)  # type: ignore[arg-type]


async def gone(process: int) -> None:
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{process}"):
            await asyncio.sleep(0.01)


@pytest.mark.spec("terminal-ssh-http", 1)
@pytest.mark.parametrize("pieces", [1, 100, 1 << 20])
async def test_init_and_requests_however_they_are_cut(make: MakeService, pieces: int) -> None:
    client = Client(await make(), shell(), pieces=pieces, then=encode_request("echo a''bc\r"))
    await client.until("abc")
    await client.detach()


@pytest.mark.spec("terminal-ssh-http", 3)
async def test_two_viewers_and_coming_back(make: MakeService) -> None:
    service, init = await make(), shell()
    first = Client(service, init)
    first.type("echo fir''st\r")
    await first.until("first")
    second = Client(service, init)
    second.type("echo sec''ond\r")
    await first.until("second")
    assert "first" in await second.until("second")
    await first.detach()
    await second.detach()
    third = Client(service, init)
    assert "first" in await third.until("second")
    assert service.terminals == 1


@pytest.mark.spec("terminal-ssh-http", 4)
@pytest.mark.parametrize("backend", ["", "screen"])
async def test_the_terminal_type_and_utf_8(make: MakeService, backend: str) -> None:
    service = await make(LANG="C", LC_CTYPE="C", LC_ALL="")
    client = Client(service, shell(command="echo $TERM=$LC_CTYPE ❯; read", backend=backend))
    await client.until("xterm-256color=C.UTF-8 ❯")


@pytest.mark.spec("terminal-ssh-http", 4)
async def test_a_locale_that_was_asked_for_stays(make: MakeService) -> None:
    service = await make(LC_ALL="C")
    assert "=C=." in await Client(service, shell(command="echo =$LC_ALL=$LC_CTYPE.")).ended()
    service = await make(LANG="de_DE.utf8", LC_ALL="")
    assert "==." in await Client(service, shell(command="echo =$LC_ALL=$LC_CTYPE.")).ended()


@pytest.mark.spec("terminal-ssh-http", 5)
async def test_the_end_of_a_command_and_of_a_shell(make: MakeService) -> None:
    service, init = await make(), shell()
    assert await Client(service, shell(command="echo test")).ended() == "test\r\n"
    clients = [Client(service, init) for _ in range(3)]
    clients[0].type("exit\r")
    for client in clients:
        await client.ended()
    assert service.terminals == 0


async def test_the_end_of_much_output_is_not_lost(make: MakeService) -> None:
    shown = await Client(await make(), shell(command="seq 200000; printf the-end")).ended()
    assert shown.endswith("199999\r\n200000\r\nthe-end")


@pytest.mark.spec("terminal-ssh-http", 7)
async def test_sizes(make: MakeService) -> None:
    client = Client(await make(), shell())
    client.type("stty size\r")
    await client.until("24 80")
    client.type("stty size; echo do''ne\r", 0, 70)
    await client.until("done")
    client.type("", 30, 100)
    client.type("stty size\r")
    await client.until("30 100")
    assert client.stream.shown.count(b"24 80") == 2


@pytest.mark.spec("terminal-ssh-http", 8)
async def test_ten_first_connections_start_one_process(make: MakeService, tmp_path: Path) -> None:
    service, init = await make(), shell(command="echo started >> log; read")
    clients = [Client(service, init) for _ in range(10)]
    clients[0].type("done\r")
    for client in clients:
        await client.ended()
    assert (tmp_path / "log").read_text() == "started\n"


@pytest.mark.spec("terminal-ssh-http", 9)
async def test_a_terminal_lives_while_anyone_looks_and_a_while_longer(make: MakeService) -> None:
    service, init = await make(limits=Limits(idle=0.5)), shell()
    client = Client(service, init)
    client.type("echo pid $$\r")
    process = await client.number("pid ")
    await asyncio.sleep(1.0)
    assert os.path.exists(f"/proc/{process}")
    left = time.monotonic()
    await client.detach()
    await gone(process)
    assert 0.4 < time.monotonic() - left < 3
    assert service.terminals == 0


@pytest.mark.spec("terminal-ssh-http", 10)
async def test_a_viewer_that_never_reads_freezes_nobody(make: MakeService) -> None:
    service, init = await make(), shell()
    stuck, lively = Client(service, init), Client(service, init)
    await lively.until("$")
    stuck.stream.stop()
    lively.type("seq 100000; echo th''e-end\r")
    await lively.until("the-end")
    stuck.stream.go_on()
    assert len(await stuck.until("the-end")) < 300_000
    await stuck.detach()
    assert service.counters.resyncs == 1


@pytest.mark.spec("terminal-ssh-http", 11)
@pytest.mark.parametrize("garbage", [b"garbage", b'{"data":5}', b'{"height":70000,"width":1}', b"[]"])
async def test_garbage_ends_only_that_attachment(make: MakeService, garbage: bytes) -> None:
    reports = Reports()
    service, init = await make(reports=reports), shell()
    client = Client(service, init)
    client.type("x=kept; echo o''k\r")
    await client.until("ok")
    client.stream.say(garbage)
    await client.ended()
    again = Client(service, init)
    again.type("echo $x$x\r")
    await again.until("keptkept")
    assert reports.told[1][2] is Ending.GRACEFUL


async def test_garbage_instead_of_an_init(make: MakeService) -> None:
    service = await make()
    for garbage in (b"\x02\x00{}", b"\xff", b"", b"\x01\x00x", b"\x00\x00"):
        stream = MemoryStream()
        stream.say(garbage)
        stream.leave()
        await service.serve(stream)
        assert stream.closed
    assert (service.terminals, service.counters.connections, service.counters.active) == (0, 5, 0)


@pytest.mark.spec("terminal-ssh-http", 12)
async def test_reports_and_counters(make: MakeService) -> None:
    reports = Reports()
    service = await make(reports=reports)
    client = Client(service, shell())
    await client.until("$")
    assert service.counters.active == 1
    await client.detach()
    assert (service.counters.active, service.counters.connections, service.counters.errors) == (0, 1, {})
    (first, connection, address), (second, same, ending) = reports.told
    assert (first, second, connection) == ("connect", "disconnect", same)
    assert address == MemoryStream.peer[0]
    assert ending is Ending.GRACEFUL
    assert (Ending.GRACEFUL.code, Ending.GRACEFUL.reason) == (0, "graceful")


@pytest.mark.spec("terminal-ssh-http", 13)
async def test_screen_only_when_it_is_asked_for(make: MakeService, tmp_path: Path) -> None:
    if shutil.which("screen") is None:
        pytest.skip("screen is not installed")
    service = await make(limits=Limits(idle=0.3, first_viewer=0.3))
    for backend in ("", "buffered"):
        client = Client(service, shell(backend=backend))
        client.type("echo sty=${STY:-none}=\r")
        await client.until("sty=none=")
    init = shell(backend="screen")
    first = Client(service, init)
    first.type("echo sty=${STY#*.}= pid $$\r")
    name = (await first.stream.match(re.compile(rb"sty=([0-9a-f]{8})=")))[1].decode()
    second = Client(service, init)
    second.type("echo tw''o\r")
    await first.until("two")
    await second.until("two")
    await first.detach()
    await second.detach()
    third = Client(service, init)
    await third.until("two")
    await third.detach()
    async with asyncio.timeout(20):
        while await asyncio.to_thread(_screen_runs, name):
            await asyncio.sleep(0.05)


def _screen_runs(name: str) -> bool:
    return any(name in command for command in _commands())


def _commands() -> Iterator[str]:
    for entry in os.listdir("/proc"):
        try:
            yield Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


@pytest.mark.spec("terminal-ssh-http", 14)
@pytest.mark.parametrize("backend", ["", "screen"])
async def test_a_shutdown_closes_everything_in_time(make: MakeService, backend: str) -> None:
    reports = Reports()
    service = await make(reports=reports)
    stubborn = "trap '' HUP TERM; echo pid $$ ; while :; do sleep 0.1; done"
    client = Client(service, shell(command=stubborn, backend=backend))
    process = await client.number("pid ")
    stuck = Client(service, shell(command="yes"))
    stuck.stream.stop()
    began = time.monotonic()
    await service.aclose()
    assert time.monotonic() - began < 5
    await client.ended()
    await stuck.ended()
    if backend:
        os.kill(process, signal.SIGKILL)  # screen itself lets go of a program that does not mind its signals
    await gone(process)
    assert service.terminals == 0
    refused = Client(service, shell())
    await refused.ended()
    assert Ending.SHUTDOWN in [ending for _, _, ending in reports.told]


# ---- what goes wrong


async def test_a_shell_that_is_not_there(make: MakeService) -> None:
    reports = Reports()
    service = await make(shell="/bin/no-such-shell", reports=reports)
    assert await Client(service, shell()).ended() == ""
    assert service.counters.errors == {"create_command": 1}
    assert reports.told[-1][2] is Ending.NETWORK_ERROR
    assert service.terminals == 0


async def test_an_environment_that_cannot_be_encoded_costs_one_terminal(make: MakeService) -> None:
    reports = Reports()
    service = await make(reports=reports, NAME="\ud800")
    assert await Client(service, shell()).ended() == ""
    assert reports.told[-1][2] is Ending.NETWORK_ERROR
    assert service.terminals == 0


async def test_a_directory_that_cannot_be_entered(make: MakeService, tmp_path: Path) -> None:
    service = await make()
    await Client(service, shell(command="echo fine")).ended()
    missing = TerminalService(Context(tmp_path / "missing"), SystemClock())
    await missing.open(None)
    assert await Client(missing, shell()).ended() == ""
    await missing.aclose()


async def test_too_many_terminals_and_viewers(make: MakeService) -> None:
    service = await make(limits=Limits(terminals=2, viewers=2))
    inits = [shell(), shell()]
    clients = [Client(service, init) for init in inits for _ in range(2)]
    for client in clients:
        await client.until("$")
    await Client(service, shell()).ended()
    await Client(service, inits[0]).ended()
    clients[0].type("exit\r")
    await clients[0].ended()
    await Client(service, shell()).until("$")


async def test_a_paste_of_many_megabytes_waits_for_the_program(make: MakeService) -> None:
    size = 30_000_000
    client = Client(await make(), shell(command=f"stty raw -echo; echo ready; sleep 0.3; head -c {size} | md5sum"))
    await client.until("ready")
    client.stream.say(b'{"data":"')
    for _ in range(size // 50_000):
        client.stream.say(b"0123456789" * 5000)
    client.stream.say(b'"}')
    expected = hashlib.md5(b"0123456789" * (size // 10)).hexdigest()
    assert expected in await client.ended()


async def test_a_stopped_viewer_stops_the_program_and_not_its_keys(make: MakeService) -> None:
    client = Client(await make(), shell(command="yes"))
    await client.until("y\r\ny")
    client.stream.stop()
    await asyncio.sleep(0.3)
    client.type("\x03")
    client.stream.go_on()
    await client.ended()


async def test_a_full_screen_program_looks_the_same_after_coming_back(make: MakeService, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"line {number} of the text\n" for number in range(200)))
    service, init = await make(), shell(command="exec vim -u NONE -N text")
    first = Client(service, init)
    await first.until("line 3")
    for _ in range(60):
        first.type("\x06\x02")  # pages down and up, until the beginning has left the history
    first.type("50Gzt")
    await first.until("line 71")
    await asyncio.sleep(0.5)
    second = Client(service, init)
    await asyncio.sleep(1.0)
    one, two = (Emulator(understood(bytes(client.stream.shown))).picture() for client in (first, second))
    assert one["cells"] == two["cells"]
    assert (one["cursor"], one["modes"]) == (two["cursor"], two["modes"])


# ---- terminals survive the agent


@asynccontextmanager
async def killed_agent(directory: Path, terminal: UUID, idle: float, commands: str = ":") -> AsyncIterator[int]:
    """An agent that had a terminal and was killed; the process of the shell."""
    yield await asyncio.to_thread(_killed_agent, directory, terminal, idle, commands)


def _killed_agent(directory: Path, terminal: UUID, idle: float, commands: str) -> int:
    command = [sys.executable, "-m", "tests.e2e.terminal_host", str(directory), str(terminal), str(idle), commands]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            return int(process.stdout.readline())
        finally:
            process.kill()


async def test_a_killed_agents_terminals_are_found_again(make: MakeService, tmp_path: Path) -> None:
    terminal = uuid4()
    async with killed_agent(tmp_path, terminal, 60, "sleep 1; seq 3; echo th''e-end") as process:
        assert os.path.exists(f"/proc/{process}")
        service = await make()
        assert service.terminals == 1
        client = Client(service, Init(terminal, 24, 80))
        shown = await client.until("the-end")
        assert f"started as {process}" in shown  # what it had printed before
        assert "1\r\n2\r\n3\r\n" in shown  # and while nobody was there
        client.type("echo $$ $x$x\r")
        await client.until(f"{process} keptkept")
        client.type("exit\r")
        await client.ended()
        await gone(process)


@pytest.mark.parametrize("commands", [":", "trap '' HUP; exec sleep 1000"])
async def test_orphaned_terminals_end_when_no_agent_comes(make: MakeService, tmp_path: Path, commands: str) -> None:
    async with killed_agent(tmp_path, uuid4(), 1, commands) as process:
        await gone(process)
        assert (await make()).terminals == 0


async def test_adopted_terminals_end_when_no_viewer_comes(make: MakeService, tmp_path: Path) -> None:
    async with killed_agent(tmp_path, uuid4(), idle=2) as process:
        service = await make(limits=Limits(idle=0.5))
        assert service.terminals == 1
        await gone(process)
        assert service.terminals == 0


async def test_terminals_are_left_to_the_next_agent(make: MakeService) -> None:
    init, former = shell(), await make()
    client = Client(former, init)
    client.type("x=kept; echo o''k\r")
    await client.until("ok")
    await former.leave()
    await client.ended()
    again = Client(await make(), init)
    again.type("echo $x$x\r")
    assert "ok" in await again.until("keptkept")


async def test_without_its_keeper_a_terminal_goes_on_and_new_ones_are_made(make: MakeService, tmp_path: Path) -> None:
    service = await make()
    client = Client(service, shell())
    await client.until("$")
    os.kill(await asyncio.to_thread(_keeper), signal.SIGKILL)
    at_once = Client(service, shell())
    await at_once.until("$")
    client.type("echo still th''ere\r")
    await client.until("still there")
    other = Client(service, shell())
    await other.until("$")


@pytest.mark.parametrize("trouble", ["gone", "planted", "full"])
async def test_a_state_directory_that_takes_nothing_costs_no_terminal(
    make: MakeService, tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, state = await make(), tmp_path / "state"
    if trouble == "gone":
        state.rmdir()
    elif trouble == "planted":
        (state / "terminals" / "in the way").mkdir(parents=True)
    else:
        monkeypatch.setattr("agent.terminal.kept._listen", _no_space)
    with structlog.testing.capture_logs() as logged:
        await Client(service, shell()).until("$")
    assert [entry["event"] for entry in logged] == ["terminals do not outlive their agent"]
    assert str(state) in logged[0]["reason"]
    await service.aclose()


def _no_space(directory: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_terminals_that_are_used_up_are_told_and_the_others_go_on(make: MakeService, tmp_path: Path) -> None:
    service, init = await make(), shell()
    client = Client(service, init)
    await client.until("$")
    keeper = await asyncio.to_thread(_keeper)
    held = len(await asyncio.to_thread(os.listdir, f"/proc/{keeper}/fd"))
    for room in range(12):
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (held + room, 4096))
        other = Client(service, shell(command="echo fine"))
        if "fine" in await other.ended():
            break
    assert room > 3
    assert service.counters.errors == {"create_command": room}
    client.type("echo go''ing on\r")
    await client.until("going on")
    async with asyncio.timeout(10):
        while len(await asyncio.to_thread(os.listdir, f"/proc/{keeper}/fd")) != held:
            await asyncio.sleep(0.01)


async def test_a_keeper_without_descriptors_hands_over_what_it_has(make: MakeService) -> None:
    former, init = await make(), shell()
    client = Client(former, init)
    client.type("x=kept; echo o''k\r")
    await client.until("ok")
    keeper = await asyncio.to_thread(_keeper)
    used = {int(name) for name in await asyncio.to_thread(os.listdir, f"/proc/{keeper}/fd")}
    resource.prlimit(keeper, resource.RLIMIT_NOFILE, (min(set(range(1000)) - used), 4096))
    again = Client(await make(), init)  # the former agent hangs, and does not know yet
    again.type("echo $x$x\r")
    await again.until("keptkept")


async def test_the_keeper_knows_no_secret(make: MakeService) -> None:
    client = Client(await make(), shell())
    await client.until("$")
    keeper = await asyncio.to_thread(_keeper)
    for name in ("environ", "cmdline"):
        assert b"hunter2" not in await asyncio.to_thread(Path(f"/proc/{keeper}/{name}").read_bytes)
    client.type("echo $SECRET\r")
    await client.until("hunter2")


def _keeper() -> int:
    """The newest keeper that is a child of this process."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"terminal/keeper.py" in command and parent == os.getpid():
            found.append(int(entry))
    return max(found)
