"""OpenSSH's programs against a server at a Unix socket."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.ssh.greeting import Greeting
from agent.ssh.options import Options
from tests.ssh.support import Host, hosting, listening

CONNECT = Path(__file__).with_name("ssh_connect.py")


@dataclass(frozen=True, slots=True)
class Done:
    """What a program printed, and how it ended."""

    status: int
    out: bytes
    err: bytes


class Clients:
    """Runs programs that know the server as `agent`; `home` is the workspace, `here` the client's directory."""

    def __init__(self, host: Host, home: Path, here: Path) -> None:
        self.host = host
        self.home = home
        self.here = here
        self.config = here / "ssh_config"

    async def run(
        self, *arguments: str | Path, given: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> Done:
        """Run a program to its end, within a minute."""
        process = await self.start(*arguments, environment=environment)
        async with asyncio.timeout(60):
            out, err = await process.communicate(given if given is not None else b"")
        assert process.returncode is not None
        return Done(process.returncode, out, err)

    async def start(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        program, *rest = (str(argument) for argument in arguments)
        if program in ("ssh", "scp", "sftp"):
            rest = ["-F", str(self.config), *rest]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            program,
            *rest,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=self.here,
            env={**os.environ, "GIT_SSH_COMMAND": f"ssh -F {self.config}", **(environment or {})},
            limit=1 << 20,
        )

    async def ssh(self, *arguments: str, given: bytes | None = None) -> Done:
        return await self.run("ssh", *arguments, given=given)


@asynccontextmanager
async def clients(
    directory: Path, *, options: Options = Options(), greeting: Greeting = Greeting()
) -> AsyncIterator[Clients]:
    """A server and a configuration by which OpenSSH finds it."""
    home, here = directory / "home", directory / "here"
    home.mkdir()
    here.mkdir()
    async with hosting(home, options=options, greeting=lambda: greeting) as host:
        found = Clients(host, home, here)
        command = shlex.join([sys.executable, "-I", "-S", str(CONNECT), str(directory / "server")])
        found.config.write_text(
            "Host agent\n"
            f"  ProxyCommand {command}\n"
            "  ProxyUseFdpass yes\n"
            "  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n"
            "  LogLevel ERROR\n"
            "  IdentitiesOnly yes\n"
        )
        async with listening(host, directory / "server"):
            yield found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
