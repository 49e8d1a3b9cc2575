"""What an editor does with a connection: a script on stdin, one long-lived way in, and many channels at once."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.ssh_client import clients, free_port

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")
CHANNELS = 200


async def test_a_bootstrap_and_two_hundred_channels_through_it(tmp_path: Path) -> None:
    """Remote-SSH: a shell reads a script that installs and starts a server; everything else goes to that one's port
    by the same connection (`-D`)."""
    script = """
        mkdir -p .editor && cat > .editor/server.py <<'END'
import asyncio
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=300)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
END
        exec python3 -I .editor/server.py
    """
    async with clients(tmp_path) as c:
        here = free_port()
        control = ("-o", f"ControlPath={tmp_path}/control")
        master = await c.start("ssh", "-T", "-M", *control, "-o", "SetEnv=CODER_SSH_SESSION_TYPE=vscode", "agent", "sh")
        try:
            assert master.stdin is not None
            assert master.stdout is not None
            master.stdin.write(script.encode())
            master.stdin.write_eof()
            async with asyncio.timeout(20):
                port = int((await master.stdout.readline()).split()[1])
            # As many ways as there are: each connection to the local end is a channel.
            done = await c.ssh(*control, "-O", "forward", "-L", f"{here}:127.0.0.1:{port}", "agent")
            assert done.status == 0, done

            async def work(number: int) -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", here)
                for turn in range(3):
                    text = b"%d/%d;" % (number, turn) * 1000
                    writer.write(text)
                    assert await reader.readexactly(len(text)) == text
                await together.wait()  # so that they are all there at once
                writer.close()

            async with asyncio.timeout(50):
                together = asyncio.Barrier(CHANNELS)
                await asyncio.gather(*(work(number) for number in range(CHANNELS)))
            # The same connection serves further commands.
            commands = [
                c.ssh(*control, "agent", f"cat > f{number}; cat f{number}", given=b"edited") for number in range(9)
            ]
            assert [done.out for done in await asyncio.gather(*commands)] == [b"edited"] * 9
            assert c.host.server.connections == 1
        finally:
            master.terminate()
            await master.wait()


async def test_two_hundred_commands_at_once(tmp_path: Path) -> None:
    """JetBrains: hundreds of sessions on one connection."""
    async with clients(tmp_path) as c, c.host.client() as client:
        variables = {"CODER_SSH_SESSION_TYPE": "JetBrains"}
        processes = [await client.create_process("echo x; cat", env=variables, encoding=None) for _ in range(CHANNELS)]
        assert [await process.stdout.readline() for process in processes] == [b"x\n"] * CHANNELS
        for process in processes:
            process.stdin.write(b"y")
            process.stdin.write_eof()
        outcomes: list[asyncssh.SSHCompletedProcess] = [await process.wait() for process in processes]
        assert {(done.stdout, done.exit_status) for done in outcomes} == {(b"y", 0)}
        assert not c.host.reports.begun
