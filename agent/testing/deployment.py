"""A whole deployment as child processes on loopback: one server with SQLite, its owner, and any number of agents."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from agent.testing.processes import Component, ComponentError

SERVER_START = 30.0  # seconds; a fresh database is made in this time, too
SERVER_STOP = 10.0
AGENT_STOP = 60.0  # includes the stop scripts
LOOK_AGAIN = 0.02


@dataclass(frozen=True, slots=True)
class CreatedAgent:
    """An agent as the server knows it; its process is `Deployment.agent`."""

    id: str
    name: str
    token_file: Path


class Deployment:
    """Everything below `directory`; an asynchronous context manager that leaves no process behind.

    `port` 0 takes a free one and None the server's usual one (or a free one where that is taken). A server that is
    started again keeps its address. Without `owner` the server is left without users. `server_options` go with every
    start of the server, and may be others for the next one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = 0,
        owner: bool = True,
        environment: Mapping[str, str] | None = None,
        server_options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.environment = {**(os.environ if environment is None else environment), "PYTHONUNBUFFERED": "1"}
        self.url = ""
        self.token = ""
        self._port, self._owner, self.server_options = port, owner, server_options
        self._agents: list[Component] = []
        self._http: aiohttp.ClientSession | None = None
        self.server = Component("server", [], directory=directory, environment=self.environment)

    async def __aenter__(self) -> Deployment:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        try:
            await self.start_server()
            if self._owner:
                self.token = await self._first_user()
        except BaseException:
            await self._http.close()
            await self.server.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the agents, then the server. After a cancellation the hard way."""
        assert self._http is not None
        await self._http.close()
        hard = kind is not None and issubclass(kind, asyncio.CancelledError)
        outcomes = await asyncio.gather(
            *(agent.kill() if hard else agent.stop(AGENT_STOP) for agent in self._agents if agent.running),
            return_exceptions=True,
        )
        if self.server.running:
            outcomes += await asyncio.gather(
                self.server.kill() if hard else self.server.stop(SERVER_STOP), return_exceptions=True
            )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures and error is None:
            raise failures[0]

    async def start_server(self) -> None:
        """Start it, or start it again at the same address, and wait until it listens."""
        port = [] if self._port is None else [f"--port={self._port}"]
        data = f"--data-dir={self.directory / 'server'}"
        self.server.arguments = ["server", "--address=127.0.0.1", *port, data, *self.server_options]
        await self.server.start()
        self.url = (await self.server.wait_for_output(r"listening on (http://\S+)", SERVER_START))[1]
        self._port = int(self.url.rpartition(":")[2])

    async def create_agent(self, definition: str) -> CreatedAgent:
        """An agent by its definition, YAML or JSON, that belongs to the owner."""
        created = await self.request("POST", "agents", text=definition)
        token_file = self.directory / f"{created['name']}.token"
        await asyncio.to_thread(_write_private, token_file, created["token"])
        return CreatedAgent(created["id"], created["name"], token_file)

    def agent(self, created: CreatedAgent, *options: str, environment: Mapping[str, str] | None = None) -> Component:
        """The process of that agent, not started yet, with its state below `directory`."""
        places = {
            "agent-url": self.url,
            "agent-token-file": created.token_file,
            "state-dir": self.directory / "state",
            "log-dir": self.directory / f"{created.name}-logs",
            "script-data-dir": self.directory / f"{created.name}-data",
            "status-socket": self.directory / f"{created.name}.sock",
            # The defaults are there once on a machine; agents of tests are many.
            "pprof-address": "",
            "prometheus-address": "",
            "debug-address": "",
        }
        component = Component(
            created.name,
            ["agent", *(f"--{name}={value}" for name, value in places.items()), *options],
            directory=self.directory,
            environment={**self.environment, **(environment or {})},
        )
        self._agents.append(component)
        return component

    async def request(self, method: str, path: str, body: object = None, *, text: str | None = None) -> Any:
        """The decoded answer of `/api/v2/PATH` to the owner; ComponentError when it is an error."""
        assert self._http is not None
        content: dict[str, Any] = {"json": body} if text is None else {"data": text.encode()}
        headers = {"Coder-Session-Token": self.token, "X-Coder-Bypass-Ratelimit": "true"} if self.token else {}
        async with self._http.request(method, f"{self.url}/api/v2/{path}", headers=headers, **content) as response:
            answer = await response.text()
            if response.status >= 300:
                raise ComponentError(f"{method} {path} was answered {response.status}: {answer}{self.server.tail()}")
            return await response.json() if answer else None

    async def logs(self, created: CreatedAgent) -> list[str]:
        """Every line that is stored for the agent, in order."""
        return [line["output"] for line in await self.request("GET", f"workspaceagents/{created.id}/logs")]

    async def wait_for(self, created: CreatedAgent, seconds: float, **wanted: Collection[str]) -> dict[str, Any]:
        """Until each of these fields of the agent, as the server has it, is one of the values wanted for it."""
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.request("GET", f"workspaceagents/{created.id}")
                    if all(found[name] in values for name, values in wanted.items()):
                        return found
                    await asyncio.sleep(LOOK_AGAIN)
        except TimeoutError:
            state = ", ".join(f"{name} {found.get(name)!r}" for name in wanted)
            wish = ", ".join(f"{name} {' or '.join(sorted(values))}" for name, values in wanted.items())
            tails = "".join(agent.tail() for agent in self._agents if agent.name == created.name)
            raise ComponentError(
                f"after {seconds:g} s the server has {state} for {created.name}, not {wish}{tails}"
            ) from None

    async def _first_user(self) -> str:
        login = {"email": "owner@localhost.invalid", "password": secrets.token_urlsafe(16)}
        await self.request("POST", "users/first", {**login, "username": "admin"})
        return str((await self.request("POST", "users/login", login))["session_token"])


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
