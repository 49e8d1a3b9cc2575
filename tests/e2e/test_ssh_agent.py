"""SSH through everything: OpenSSH, a client's node, the server, an agent's process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.ssh.hostkey import derive, seed_of
from agent.testing.deployment import Deployment
from agent.testing.processes import Component
from tests.e2e.ssh_client import Done

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client"),
]


class Reach:
    """Runs `ssh` against ports that are forwarded to the agent's."""

    def __init__(self, directory: Path, ports: dict[int, int]) -> None:
        self.ports = ports
        self._directory = directory

    async def start(self, port: int, *arguments: str) -> asyncio.subprocess.Process:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [flag for option in options for flag in ("-o", option)]
        pipe = asyncio.subprocess.PIPE
        command = ("-F", "none", *flags, "-p", str(self.ports[port]), "any@127.0.0.1", *arguments)
        return await asyncio.create_subprocess_exec("ssh", *command, stdin=pipe, stdout=pipe, stderr=pipe)

    async def ssh(self, port: int, *arguments: str, given: bytes = b"") -> Done:
        process = await self.start(port, *arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate(given)
        assert process.returncode is not None
        return Done(process.returncode, out, err)


@asynccontextmanager
async def reaching(running: Deployment, name: str, directory: Path) -> AsyncIterator[Reach]:
    """Ports 1 and 22 of an agent, on this machine."""
    environment = {**running.environment, "CODER_URL": running.url, "CODER_SESSION_TOKEN": running.token}
    arguments = ["port-forward", name, "--json", "--tcp", "0:1", "--tcp", "0:22"]
    node = Component("node", arguments, directory=directory, environment=environment)
    await node.start()
    try:
        ports = {}
        for port in (1, 22):
            pattern = rf'"local_port": (\d+), "port": {port}\}}'
            ports[port] = int((await node.wait_for_output(pattern, 30))[1])
        yield Reach(directory, ports)
    finally:
        await node.kill()


@pytest.mark.spec("terminal-ssh-http", 19, 20, 24, 35, 36)
@pytest.mark.spec("tailnet", 55)
async def test_a_workspace_over_ssh(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    definition = {
        "name": "dev",
        "directory": str(directory),
        "env": {"X": "$NOTSET", "P": "$PATH:/x", "OWN": "template"},
    }
    async with Deployment(tmp_path) as running:
        created = await running.create_agent(json.dumps(definition))
        agent = running.agent(created, environment={"MINE": "agent"})
        await agent.start()
        await running.wait_for(created, 30, lifecycle_state={"ready"})
        async with reaching(running, created.name, tmp_path) as reach:
            for port in (1, 22):
                done = await reach.ssh(port, "pwd; cat; exit 3", given=b"given")
                assert (done.status, done.out) == (3, f"{directory}\ngiven".encode()), done
            done = await reach.ssh(22, "-o", "SetEnv=MINE=client NEW=client OWN=client CODER=client", "env")
            variables = dict(line.split("=", 1) for line in done.out.decode().splitlines() if "=" in line)
            assert variables["CODER"] == "true"
            assert variables["CODER_WORKSPACE_NAME"] == "dev"
            assert (variables["MINE"], variables["NEW"], variables["OWN"]) == ("agent", "client", "template")
            assert variables["X"] == ""
            assert variables["P"].endswith(":/x")
            assert variables["PATH"].split(":")[0].endswith("coder-script-data/bin")
            assert variables["SSH_CLIENT"] == "0.0.0.0 0 0"
            names = (variables["CODER_WORKSPACE_OWNER_NAME"], "dev", variables["CODER_WORKSPACE_AGENT_NAME"])

            scan = await asyncio.create_subprocess_exec(
                "ssh-keyscan", "-t", "rsa", "-p", str(reach.ports[22]), "127.0.0.1",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            found, _ = await scan.communicate()
            assert found.split()[1:] == _public_key(*names)

            plain = await reach.start(22, "trap '' TERM; echo here; sleep 60")
            terminal = await reach.start(22, "-tt", "trap '' TERM; echo here; sleep 60")
            for process in (plain, terminal):
                assert process.stdout is not None
                assert b"here" in await asyncio.wait_for(process.stdout.readline(), 20)
            began = asyncio.get_running_loop().time()
            await agent.stop(30)
            assert asyncio.get_running_loop().time() - began < 10
            async with asyncio.timeout(10):
                assert [await process.wait() for process in (plain, terminal)] == [255, 255]


def _public_key(*names: str) -> list[bytes]:
    import asyncssh

    key = asyncssh.import_private_key(derive(seed_of(*names)).pem())
    return key.export_public_key().split()[:2]
