"""A control plane on a loopback port with a first user and agents, for tests that speak HTTP."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
from aiohttp.test_utils import TestServer
from argon2 import PasswordHasher
from sqlalchemy import select

from agent.clock import Clock, SystemClock
from agent.rpc import RpcClient, WebSocketTransport
from agent.server.app import open_server
from agent.server.auth import new_key
from agent.server.config import ServerConfig
from agent.server.store import Database, open_database
from agent.server.store.schema import ApiKey, Base, User

DEFINITION: dict[str, Any] = {
    "name": "dev",
    "directory": "/home/dev",
    "env": {"FOO": "bar"},
    "scripts": [
        {"display_name": "hello", "script": "echo hello", "run_on_start": True, "timeout": "60s"},
        {"display_name": "cronny", "script": "date", "cron": "*/5 * * * * *"},
    ],
    "metadata": [
        {"key": "cpu", "display_name": "CPU", "script": "uptime", "interval": 10, "timeout": 5},
        {"key": "disk", "script": "df", "interval": 60},
    ],
    "apps": [
        {
            "slug": "web",
            "url": "http://127.0.0.1:18081",
            "healthcheck": {"url": "http://127.0.0.1:18081/healthz", "interval": 2, "threshold": 2},
        },
        {"slug": "plain", "url": "http://127.0.0.1:1"},
    ],
    "resources": {"memory": {"threshold": 80}, "volumes": [{"path": "/home", "threshold": 90}]},
}


PASSWORD = "correct horse battery"


@lru_cache(maxsize=1)
def password_hash() -> str:
    return PasswordHasher().hash(PASSWORD)


@dataclass
class NewAgent:
    id: UUID
    token: str


@dataclass
class Deployment:
    """`user` is the token of the owner who set the server up."""

    http: aiohttp.ClientSession
    url: str
    database: Database
    config: ServerConfig
    clock: Clock
    user: str = ""

    async def call(self, method: str, path: str, *, token: str | None = None, expect: int = 200, **options: Any) -> Any:
        """The JSON of the answer; `token` is the owner's where none is given, and "" for no token."""
        given = self.user if token is None else token
        headers = {"Coder-Session-Token": given} if given else {}
        if "json" in options:  # aiohttp warns of large bodies that are no streams
            options["data"] = io.BytesIO(json.dumps(options.pop("json")).encode())
            headers["Content-Type"] = "application/json"
        async with self.http.request(method, self.url + path, headers=headers, **options) as response:
            text = await response.text()
            assert response.status == expect, f"{method} {path}: {response.status} {text}"
            return await response.json(content_type=None) if text else None

    async def new_agent(self, name: str = "dev", *, token: str | None = None, **changes: Any) -> NewAgent:
        answer = await self.call(
            "POST", "/api/v2/agents", token=token, json=DEFINITION | {"name": name} | changes, expect=201
        )
        return NewAgent(UUID(answer["id"]), answer["token"])

    async def new_member(self, name: str, email: str = "", role: str = "member") -> str:
        """The token of a session of a new user with `PASSWORD`.

        It goes straight into the database: hashing passwords would take most of a test's time.
        """
        key, user, now = new_key(), uuid4(), self.clock.wall() // 1000
        account = {"username": name.lower(), "email": email or f"{name.lower()}@example.com", "role": role}
        times = {"created_at": now, "updated_at": now}
        lifetime = round(self.config.session_lifetime)
        async with self.database.transaction() as session:
            session.add(User(id=user, password_hash=password_hash(), last_seen_at=now, **account, **times))
            await session.flush()
            session.add(
                ApiKey(
                    id=key.id,
                    user_id=user,
                    secret_hash=key.secret_hash,
                    login_type="password",
                    name="",
                    last_used_at=now,
                    expires_at=now + lifetime * 1_000_000,
                    lifetime_seconds=lifetime,
                    **times,
                )
            )
        return key.token

    async def agent(self, agent: NewAgent) -> Any:
        return await self.call("GET", f"/api/v2/workspaceagents/{agent.id}")

    async def logs(self, agent: NewAgent, query: str = "") -> Any:
        return await self.call("GET", f"/api/v2/workspaceagents/{agent.id}/logs{query}")

    async def patch_logs(self, agent: NewAgent, *outputs: str, **body: Any) -> None:
        lines = [{"output": output} for output in outputs]
        await self.call("PATCH", "/api/v2/workspaceagents/me/logs", token=agent.token, json={"logs": lines, **body})

    def follow(self, agent: NewAgent, query: str = "follow") -> Any:
        return self.websocket(f"/api/v2/workspaceagents/{agent.id}/logs?{query}", self.user)

    def websocket(self, path: str, token: str, **options: Any) -> Any:
        headers = {"Coder-Session-Token": token}
        return self.http.ws_connect(self.url + path, headers=headers, max_msg_size=0, **options)

    @asynccontextmanager
    async def rpc(self, agent: NewAgent, query: str = "version=2.10&role=agent") -> AsyncIterator[RpcClient]:
        """The agent's side of a connection."""
        async with self.websocket(f"/api/v2/workspaceagents/me/rpc?{query}", agent.token) as socket:
            client = RpcClient(WebSocketTransport(socket), SystemClock())
            await client.start()
            try:
                yield client
            finally:
                await client.aclose()

    async def rows(self, table: type[Base]) -> list[Any]:
        async with self.database.reading() as session:
            return list((await session.scalars(select(table))).all())


@asynccontextmanager
async def deployment(
    database_url: str, data_dir: Path, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Deployment]:
    """A running server; `settings` are fields of `ServerConfig`."""
    clock = clock or SystemClock()
    config = ServerConfig(data_dir=data_dir, database=database_url, **{"rate_limit": 0, **settings})
    async with open_server(config, clock, "http://access.example") as server:
        running = TestServer(server.app)
        await running.start_server()
        database = await open_database(database_url)
        try:
            async with aiohttp.ClientSession() as http:
                made = Deployment(http, str(running.make_url("")).rstrip("/"), database, config, clock)
                made.user = await made.new_member("admin", "a@b.co", "owner")
                yield made
        finally:
            await database.aclose()
            await running.close()
