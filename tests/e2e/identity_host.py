"""A machine in a cloud: the agent, its server and the fake metadata service, with nothing else in reach.

    python -m tests.e2e.identity_host aws|azure|google DIRECTORY

Run by test_instance_identity.py in a network namespace. It raises where something is not as it should be.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.metadata import KEYS, Authority, FakeMetadata, Faults, Instance
from agent.testing.metadata.__main__ import make
from agent.testing.processes import Component

ADDRESS = "169.254.169.254"
OUTAGE = 5.0
"""Seconds without metadata. What a longer one would add is more of the same attempts, at most 10 s apart."""
READY = 30.0


def shell(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=10)


class Machine:
    """One machine in `cloud`, from its first start on."""

    def __init__(self, cloud: str, deployment: Deployment, fake: FakeMetadata) -> None:
        self.cloud = cloud
        self.deployment = deployment
        self.fake = fake
        self.log = deployment.directory / "agent.json"
        """Of the agent that was made last."""

    async def create(self, name: str, instance_id: str) -> CreatedAgent:
        script = {"display_name": "start", "script": f"echo started as {name}", "run_on_start": True}
        return await self.deployment.create_agent(
            json.dumps({"name": name, "instance_id": instance_id, "scripts": [script]})
        )

    def agent(self, created: CreatedAgent, auth: str) -> Component:
        """Its process: told the server and how to prove itself, and no secret."""
        self.log = self.deployment.directory / f"agent-{auth}.json"
        # Whoever used this proxy would get no answer.
        proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        component = self.deployment.agent(created, f"--auth={auth}", f"--log-json={self.log}", environment=proxy)
        component.arguments = [text for text in component.arguments if not text.startswith("--agent-token-file")]
        component.arguments.append("--agent-header=X-Access=secret-of-the-proxy")
        return component

    async def lose_the_connection(self) -> None:
        await self.deployment.server.stop(10)
        await self.deployment.start_server()

    async def until_logged(self, text: str) -> None:
        async with asyncio.timeout(READY):
            while not self.log.exists() or text not in await asyncio.to_thread(self.log.read_text):
                await asyncio.sleep(0.05)

    async def connected(self, created: CreatedAgent, **more: Any) -> None:
        await self.deployment.wait_for(created, READY, status={"connected"}, **more)


async def main(cloud: str, directory: Path) -> None:
    shell("mount", "-t", "proc", "proc", "/proc")  # scripts are known by what the kernel says of their processes
    shell("ip", "link", "set", "lo", "up")
    shell("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    authority = Authority()
    fake = make(cloud, authority, Instance("instance-1"))
    async with fake.listening(ADDRESS, 80) as url:
        keys = f"{url}{KEYS}" if cloud == "google" else ""
        config = await asyncio.to_thread(authority.write, directory, keys)
        options = (f"--instance-identity={config}",)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CODER_")}
        async with Deployment(directory, environment=environment, server_options=options) as deployment:
            await live(Machine(cloud, deployment, fake))


async def live(machine: Machine) -> None:
    fake, deployment = machine.fake, machine.deployment
    first = await machine.create("first", "instance-1")
    agent = machine.agent(first, f"{machine.cloud}-instance-identity")

    await agent.start()
    await machine.connected(first, lifecycle_state={"ready"})
    assert await deployment.logs(first) == ["started as first"]
    asked_by_then = len(fake.requests)

    # Without metadata a connection goes on; and a lost one comes back when they do.
    fake.faults = Faults(status=503)
    await asyncio.sleep(OUTAGE)
    await machine.connected(first)
    for _ in range(2):
        await machine.lose_the_connection()
        await machine.until_logged("refresh token: ")
        assert agent.running
        fake.faults = Faults()
        await machine.connected(first)
        fake.faults = Faults(hangs_up=True)
    fake.faults = Faults()
    assert len(fake.requests) > asked_by_then

    # A new certificate or key.
    fake.rotate()
    await machine.lose_the_connection()
    await machine.connected(first)

    # The machine becomes another instance, and some time later an agent is bound to that.
    fake.change({"instance_id": "instance-2"})
    await machine.lose_the_connection()
    await machine.until_logged("was answered 404")
    second = await machine.create("second", "instance-2")
    await machine.connected(second, lifecycle_state={"ready"})
    assert (await deployment.request("GET", f"workspaceagents/{first.id}"))["status"] != "connected"

    # A stop does not wait for metadata.
    fake.faults = Faults(delay=3600)
    await machine.lose_the_connection()
    await asyncio.sleep(0.5)
    assert await agent.stop(20) == 0

    # The same machine finds its cloud by itself.
    fake.faults = Faults()
    found = machine.agent(second, "auto")
    await found.start()
    await machine.until_logged("this machine is in ")
    await machine.until_logged('"connected"')
    await machine.connected(second)

    for request in fake.requests:
        assert not {"coder-session-token", "x-access", "cookie"} & request.headers.keys(), request
    logs = deployment.directory.glob("agent-*.json")
    written = "".join([await asyncio.to_thread(log.read_text) for log in logs])
    for secret in ("instanceId", "eyJ", "secret-of-the-proxy", *(first.token_file, second.token_file)):
        text = await asyncio.to_thread(secret.read_text) if isinstance(secret, Path) else secret
        assert text not in written, f"the log has {secret}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
