"""The people-facing commands against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.main import main
from agent.testing.deployment import Deployment

DEFINITION = """
name: dev
scripts:
  - display_name: greet
    script: |
      echo hello
      echo oops >&2
    run_on_start: true
  - display_name: other
    script: echo elsewhere
    run_on_start: true
"""


class Cli:
    """The console command of one person, who keeps a session in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"XDG_CONFIG_HOME": str(home), "CODER_URL": None, "CODER_SESSION_TOKEN": None}

    async def __call__(self, *arguments: str, code: int = 0, input: str | None = None) -> str:
        """What it prints; it must end with exit code `code`."""
        runner = CliRunner()
        result = await asyncio.to_thread(runner.invoke, main, arguments, input=input, env=self.environment)
        assert result.exit_code == code, result.output
        return result.output

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self(*arguments, "--json"))


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with Deployment(tmp_path) as running:
        yield running


@pytest.fixture
async def cli(deployment: Deployment, tmp_path: Path) -> Cli:
    person = Cli(tmp_path / "config")
    await person("login", deployment.url, "--token", deployment.token)
    return person


@pytest.fixture
def definition(tmp_path: Path) -> str:
    path = tmp_path / "dev.yaml"
    path.write_text(DEFINITION)
    return str(path)


async def test_the_first_login_makes_the_first_user(tmp_path: Path) -> None:
    async with Deployment(tmp_path, owner=False) as running:
        person = Cli(tmp_path / "config")
        answers = "\nme@example.com\nlong enough 1\nlong enough 1\n"
        assert "as admin" in await person("login", running.url, input=answers)
        stored = tmp_path / "config/workspace-agent/session.json"
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        assert [user["username"] for user in (await person.json("users", "list"))["users"]] == ["admin"]

        other = Cli(tmp_path / "other")
        assert "as admin" in await other("login", running.url, input="me@example.com\nlong enough 1\n")
        wrong = await other("login", running.url, "--email=me@example.com", "--password=no", code=1)
        assert wrong.startswith("error: ")
        assert len(wrong.splitlines()) == 1


async def test_a_one_time_link_logs_in_once(deployment: Deployment, tmp_path: Path) -> None:
    link = (await deployment.request("POST", "users/me/login-links"))["url"]
    assert "as admin" in await Cli(tmp_path / "config")("login", link)
    assert "used before" in await Cli(tmp_path / "config")("login", link, code=1)


async def test_an_agent_from_its_definition_to_its_end(cli: Cli, definition: str) -> None:
    created = await cli.json("agents", "create", "-f", definition)
    assert created["name"] == "dev"
    assert [(agent["name"], agent["status"]) for agent in (await cli.json("agents", "list"))["agents"]] == [
        ("dev", "connecting")
    ]
    assert "dev" in await cli("agents", "list")
    assert "greet" in await cli("agents", "show", "dev")
    assert (await cli.json("agents", "show", created["id"]))["lifecycle_state"] == "created"
    token = (await cli("agents", "token", "dev")).strip()
    assert token != created["token"]
    assert "deleted dev" in await cli("agents", "delete", "dev", "--yes")
    assert (await cli.json("agents", "list"))["agents"] == []


async def test_a_name_is_only_a_name(cli: Cli) -> None:
    assert 'no agent "../users"' in await cli("agents", "show", "../users", code=1)
    assert 'no agent "a?b#c d"' in await cli("agents", "token", "a?b#c d", code=1)


async def test_a_wrong_definition_is_refused_with_path_and_line(cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: dev\nscripts:\n  - display_nam: x\n    timeout: soon\n")
    message = await cli("agents", "create", "-f", str(wrong), code=1)
    assert "display_nam" in message
    assert "timeout" in message
    assert "line 4" in message or ":4" in message


async def test_a_definition_that_cannot_be_read_is_named(cli: Cli, tmp_path: Path) -> None:
    assert f"cannot read {tmp_path}/none" in await cli("agents", "create", "-f", f"{tmp_path}/none", code=1)
    assert "is a directory" in (await cli("agents", "create", "-f", str(tmp_path), code=1)).lower()


async def test_logs_are_shown_by_source_and_followed(cli: Cli, definition: str, deployment: Deployment) -> None:
    created = await deployment.create_agent(DEFINITION)
    agent = deployment.agent(created)
    await agent.start()
    await deployment.wait_for(created, 30, lifecycle_state={"ready"})
    follower = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent", "logs", "dev", "--follow", "--source=greet",
        stdout=-1, env={**os.environ, "XDG_CONFIG_HOME": str(cli.home)},
    )  # fmt: skip
    assert follower.stdout is not None
    async with asyncio.timeout(20):
        followed = {(await follower.stdout.readline()).decode() for _ in range(2)}
    assert followed == {"greet | hello\n", "greet | oops\n"}
    follower.send_signal(signal.SIGINT)
    assert await follower.wait() == 130

    assert set((await cli("logs", "dev")).splitlines()) == {"greet | hello", "greet | oops", "other | elsewhere"}
    assert await cli("logs", "dev", "--source", "other") == "other | elsewhere\n"
    lines = [json.loads(line) for line in (await cli("logs", "dev", "--json")).splitlines()]
    assert {(line["output"], line["level"]) for line in lines} == {
        ("hello", "info"), ("oops", "error"), ("elsewhere", "info"),
    }  # fmt: skip
    assert "there are: greet, other" in await cli("logs", "dev", "--source", "nope", code=1)
    await agent.stop(30)


async def test_members_are_made_and_see_only_their_own(cli: Cli, definition: str, tmp_path: Path) -> None:
    await cli("agents", "create", "-f", definition)
    await cli("users", "create", "jo", "--email=jo@example.com", "--password=long enough 1")
    jo = Cli(tmp_path / "jo")
    await jo("login", await _url(cli), "--email=jo@example.com", "--password=long enough 1")
    assert (await jo.json("agents", "list"))["agents"] == []
    assert (await jo("agents", "show", "dev", code=1)).startswith("error: ")
    assert (await jo("users", "list", code=1)).startswith("error: ")
    await cli("users", "password", "jo", "--password=another long 2")
    assert "workspace-agent login" in await jo("agents", "list", code=1)
    await cli("users", "delete", "jo", "--yes")
    assert "jo" not in await cli("users", "list")


async def _url(cli: Cli) -> str:
    return str(json.loads((cli.home / "workspace-agent/session.json").read_text())["url"])


async def test_a_token_works_until_it_is_deleted(cli: Cli, tmp_path: Path) -> None:
    token = (await cli("tokens", "create", "--name=ci", "--days=1")).strip()
    program = Cli(tmp_path / "program")
    await program("login", await _url(cli), "--token", token)
    listed = [key for key in await cli.json("tokens", "list") if key["token_name"] == "ci"]
    assert len(listed) == 1
    assert token.startswith(listed[0]["id"])
    assert "ci" in await cli("tokens", "list")
    await cli("tokens", "delete", listed[0]["id"])
    assert "workspace-agent login" in await program("agents", "list", code=1)


async def test_mistakes_of_usage_end_with_2(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    await cli("agents", "create", code=2)
    await cli("nonsense", code=2)
    await cli("tokens", "create", "--days=0", code=2)
    assert "not logged in" in await cli("agents", "list", code=1)


async def test_a_reader_that_goes_away_is_no_traceback(cli: Cli, deployment: Deployment) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(cli.home)}
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m agent agents list | true", stderr=-1, env=environment
    )
    _, errors = await process.communicate()
    assert errors == b""
