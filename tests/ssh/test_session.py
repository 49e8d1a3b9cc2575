"""Shells and commands, with a real process each."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import asyncssh
import pytest

from agent.ssh.counters import Kind
from agent.ssh.greeting import Greeting
from tests.ssh.support import hosting, until


@pytest.mark.spec("terminal-ssh-http", 24)
async def test_output_errors_and_exit_codes(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        done = await client.run("echo out; echo err >&2; exit 3", encoding=None)
        assert (done.stdout, done.stderr, done.exit_status) == (b"out\n", b"err\n", 3)
        assert (await client.run("kill -9 $$", encoding=None)).exit_status == 255
        assert (await client.run("pwd", encoding=None)).stdout == os.fsencode(tmp_path) + b"\n"
        await until(lambda: len(host.reports.ended) == 3)
        assert [(status, reason) for _, status, reason in host.reports.ended] == [
            (3, "process exited with error status: 3"),
            (255, "process exited with error status: -1"),
            (0, "graceful"),
        ]


@pytest.mark.spec("terminal-ssh-http", 24)
async def test_what_the_agent_cannot_start_is_229(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        host.context.program = "/does/not/exist"
        done = await client.run("true", encoding=None)
        assert done.exit_status == 229
        assert isinstance(done.stderr, bytes)
        assert b"/does/not/exist" in done.stderr
        assert list(host.server.counters.errors.values()) == [1]


@pytest.mark.spec("terminal-ssh-http", 25)
async def test_input_has_an_end_and_a_hundred_megabytes_arrive_whole(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        assert (await client.run("cat | wc -c", input=b"12345", encoding=None)).stdout == b"5\n"
        data = os.urandom(1 << 20) * 20
        done = await client.run("cat", input=data, encoding=None)
        assert done.stdout == data


@pytest.mark.spec("terminal-ssh-http", 26)
async def test_a_terminal_has_size_type_and_modes(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process(
            term_type="vt220", term_size=(100, 30), term_modes={asyncssh.PTY_ECHO: 0}, encoding=None
        )
        process.stdin.write(
            b"stty size; stty -a | tr ';' '\\n' | grep -ow -- -echo; echo $TERM; test -c $SSH_TTY; echo tty=$?\n"
        )
        seen = await _until(process, b"tty=0")
        assert b"30 100" in seen
        assert b"-echo" in seen
        assert b"vt220" in seen
        process.change_terminal_size(80, 24)
        process.stdin.write(b"stty size; exit 7\n")
        assert b"24 80" in await process.stdout.read()
        assert (await process.wait()).exit_status == 7


async def _until(process: asyncssh.SSHClientProcess[bytes], mark: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(10):
        while mark not in seen:
            part = await process.stdout.read(4096)
            assert part, seen
            seen += part
    return seen


async def _run(client: asyncssh.SSHClientConnection, command: str, **options: object) -> bytes:
    done = await client.run(command, encoding=None, **options)  # type: ignore[arg-type]
    assert isinstance(done.stdout, bytes)
    return done.stdout


@pytest.mark.spec("terminal-ssh-http", 25)
async def test_the_end_of_a_short_terminal_is_never_lost(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        for number in range(20):
            assert (
                await _run(client, f"seq {number + 500}; echo end", term_type="xterm")
                == b"".join(b"%d\r\n" % (line + 1) for line in range(number + 500)) + b"end\r\n"
            )


@pytest.mark.spec("terminal-ssh-http", 27)
@pytest.mark.parametrize("terminal", [False, True])
async def test_signals_reach_the_process(tmp_path: Path, terminal: bool) -> None:
    options = {"term_type": "xterm"} if terminal else {}
    script = "trap 'echo got usr1' USR1; trap 'echo got int' INT; echo ready; while :; do sleep 0.01; done"
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process(script, encoding=None, **options)
        await _until(process, b"ready")
        for name, answer in (("USR1", b"got usr1"), ("INT", b"got int")):
            process.send_signal(name)
            await _until(process, answer)
        process.channel._send_request(b"signal", asyncssh.packet.String("WINCH"))
        assert (await process.wait()).exit_status == 255


@pytest.mark.spec("terminal-ssh-http", 28)
async def test_a_command_outlives_its_client_and_a_terminal_does_not(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with host.client() as client:
            process = await client.create_process("echo $$; read x; sleep 0.2; echo done > file", encoding=None)
            await _until(process, b"\n")
            process.channel.abort()
            shell = await client.create_process("echo $$; trap '' HUP; sleep 60", term_type="xterm", encoding=None)
            pid = int((await _until(shell, b"\n")).split()[0])
            await until((tmp_path / "file").exists)
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        await until(lambda: len(host.reports.ended) == 2)
        assert host.server.counters.live[Kind.SSH] == 0


@pytest.mark.spec("terminal-ssh-http", 29)
async def test_only_a_shell_with_a_terminal_is_greeted(tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("of the day\n")
    greeting = Greeting(["\n\nhello\n\n\n"], str(tmp_path / "motd"), str(tmp_path))
    async with hosting(tmp_path, greeting=lambda: greeting) as host, host.client() as client:
        shell = await client.create_process(term_type="xterm", encoding=None)
        shell.stdin.write(b"exit\n")
        assert (await shell.stdout.read()).startswith(b"hello\r\n\r\nof the day\r\n")
        assert await _run(client, "echo x", term_type="xterm") == b"x\r\n"
        assert await _run(client, "", input=b"echo y") == b"y\n"
        (tmp_path / "motd").unlink()
        (tmp_path / "motd").mkdir()
        shell = await client.create_process(term_type="xterm", encoding=None)
        shell.stdin.write(b"echo goes on\nexit\n")
        await _until(shell, b"goes on")
        assert [what for _, _, what in host.server.counters.errors] == ["motd"]


@pytest.mark.spec("terminal-ssh-http", 20, 34)
async def test_variables_of_the_client(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        host.context.variables["OWN"] = "agent"
        variables = {"OWN": "client", "NEW": "client", "CODER_SSH_SESSION_TYPE": "VSCode", "CODER_CONTAINER": "c"}
        found = await _run(client, "env", env=variables)
        assert b"OWN=agent\n" in found
        assert b"NEW=client\n" in found
        assert b"CODER_" not in found
        counted = client.create_process("cat", env={"CODER_SSH_SESSION_TYPE": "VSCode"}, encoding=None)
        async with await counted as process:
            await until(lambda: host.server.counters.live[Kind.VSCODE] == 1)
            process.stdin.write_eof()
        await _run(client, "true", env={"CODER_SSH_SESSION_TYPE": "JetBrains"})
        await _run(client, "true", env={"CODER_SSH_SESSION_TYPE": "other"})
        await until(lambda: len(host.reports.ended) == 3)
        assert [kind for _, kind, _ in host.reports.begun] == [Kind.VSCODE, Kind.VSCODE, Kind.UNKNOWN]
        assert host.reports.begun[0][2] == "fd7a:115c:a1e0::2a"


@pytest.mark.spec("terminal-ssh-http", 38)
async def test_counters(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        counters = host.server.counters
        await _run(client, "", input=b"true")
        assert counters.sessions == {(Kind.SSH, False): 1}
        assert (counters.failed_connections, counters.sftp, counters.sftp_errors) == (0, 0, 0)
        stranger = host.connect()
        stranger.send(b"SSH-2.0-x\r\n")
        stranger.close()
        await until(lambda: counters.failed_connections == 1)


@pytest.mark.spec("terminal-ssh-http", 35)
@pytest.mark.parametrize("terminal", [False, True])
async def test_the_end_of_the_agent(tmp_path: Path, terminal: bool) -> None:
    options = {"term_type": "xterm"} if terminal else {}
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process("trap '' TERM; echo $$; sleep 60", encoding=None, **options)
        pid = int((await _until(process, b"\n")).split()[0])
        began = asyncio.get_running_loop().time()
        await host.server.aclose()
        assert asyncio.get_running_loop().time() - began < 5
        async with asyncio.timeout(5):
            assert (await process.wait()).exit_status is None
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert [end[1] for end in host.reports.ended] == [1]
        assert host.server.connections == 0


async def test_the_end_of_the_agent_waits_for_nobody_for_long(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, host.client() as client:
        process = await client.create_process("trap '' HUP; echo $$; while :; do sleep 1; done", encoding=None)
        pid = int((await _until(process, b"\n")).split()[0])
        async with asyncio.timeout(5):
            await host.server.aclose()
        os.kill(pid, signal.SIGKILL)
