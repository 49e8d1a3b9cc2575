"""git in a workspace, against a real server: real git, and an ssh that writes down how it was called."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.testing.deployment import Deployment
from tests.scripts.support import eventually

SSH = """#!/bin/sh
if [ "$1" = -G ]; then exec REAL -F "$HOME/.ssh/config" "$@"; fi
printf '%s\\n' "$@" > "$HOME/arguments"
for last in "$@"; do case "$before" in -i) cp -p "$last" "$HOME/last-key";; esac; before=$last; done
echo begun > "$HOME/begun"
if [ -e "$HOME/wait" ]; then exec sleep 60; fi
cat
exit $(cat "$HOME/status")
"""


class InWorkspace:
    """What a command in a workspace sees: a home, the variables of the agent, and the program."""

    def __init__(self, deployment: Deployment, token: str) -> None:
        self.deployment = deployment
        self.home = deployment.directory / "home"
        self.temporary = deployment.directory / "tmp"
        for directory in (self.home / ".ssh", self.home / "bin", self.temporary):
            directory.mkdir(parents=True)
        ssh = self.home / "bin" / "ssh"
        ssh.write_text(SSH.replace("REAL", shutil.which("ssh") or "false"))
        ssh.chmod(0o755)
        program = self.home / "bin" / "workspace-agent"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
        program.chmod(0o755)
        (self.home / "status").write_text("0")
        (self.home / ".ssh" / "config").write_text("")
        self.program = str(program)
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PATH": f"{self.home}/bin:{os.environ['PATH']}",
            "CODER_AGENT_URL": deployment.url,
            "CODER_AGENT_TOKEN": token,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    async def start(self, *command: str, **variables: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self.home,
            env={**self.environment, **variables},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *command: str, given: bytes = b"", **variables: str) -> tuple[int | None, str, str]:
        process = await self.start(*command, **variables)
        out, err = await asyncio.wait_for(process.communicate(given), 20)
        return process.returncode, out.decode(), err.decode()

    def identities(self) -> list[str]:
        """What ssh was called with for -i."""
        words = (self.home / "arguments").read_text().splitlines()
        return [words[index + 1] for index, word in enumerate(words) if word == "-i"]


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[InWorkspace]:
    if shutil.which("ssh") is None or shutil.which("git") is None:
        pytest.skip("needs git and OpenSSH's client")
    async with Deployment(tmp_path) as deployment:
        created = await deployment.create_agent('{"name": "dev"}')
        yield InWorkspace(deployment, created.token_file.read_text())


@pytest.mark.spec("daemon", 44)
async def test_without_keys_of_the_user_the_servers_key_is_used(workspace: InWorkspace) -> None:
    code, out, err = await workspace.run(
        workspace.program,
        "gitssh",
        "--",
        "-o",
        "SendEnv=GIT_PROTOCOL",
        "git@host",
        "git-upload-pack 'o/r'",
        given=b"x\n",
    )
    assert (code, out, err) == (0, "x\n", "")
    (key,) = workspace.identities()
    assert Path(key).parent == workspace.temporary
    assert Path(key).name.startswith("coder-gitsshkey-")
    words = (workspace.home / "arguments").read_text().splitlines()
    assert words[2:] == ["-o", "SendEnv=GIT_PROTOCOL", "git@host", "git-upload-pack 'o/r'"]
    seen = workspace.home / "last-key"
    assert stat.S_IMODE(seen.stat().st_mode) == 0o600
    assert seen.read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert os.listdir(workspace.temporary) == []


@pytest.mark.spec("daemon", 44)
async def test_the_users_keys_come_first(workspace: InWorkspace) -> None:
    (workspace.home / "mine").write_text("key")
    (workspace.home / ".ssh" / "config").write_text(
        f"Host host\n  IdentityFile {workspace.home}/mine\n  IdentityFile {workspace.home}/missing\n"
    )
    assert (await workspace.run(workspace.program, "gitssh", "--", "git@host", "x"))[0] == 0
    mine, theirs = workspace.identities()
    assert mine == f"{workspace.home}/mine"
    assert "coder-gitsshkey-" in theirs


@pytest.mark.spec("daemon", 44)
async def test_what_a_failure_of_ssh_says(workspace: InWorkspace) -> None:
    (workspace.home / "status").write_text("255")
    code, _, err = await workspace.run(workspace.program, "gitssh", "--", "git@host", "x")
    assert code == 1
    assert "ssh-ed25519 " in err
    assert "https://github.com/settings/ssh/new" in err
    (workspace.home / "status").write_text("3")
    code, _, err = await workspace.run(workspace.program, "gitssh", "--", "git@host", "x")
    assert (code, err) == (1, "")


@pytest.mark.spec("daemon", 44)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_the_key_is_gone_after_a_signal(workspace: InWorkspace, number: signal.Signals) -> None:
    (workspace.home / "wait").touch()
    process = await workspace.start(workspace.program, "gitssh", "--", "git@host", "x")
    await eventually(lambda: (workspace.home / "begun").exists(), 15)
    assert len(os.listdir(workspace.temporary)) == 1
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == 1
    assert os.listdir(workspace.temporary) == []


async def test_without_a_server_the_users_keys_have_to_do(workspace: InWorkspace) -> None:
    code, _, err = await workspace.run(
        workspace.program, "gitssh", "--", "git@host", "x", CODER_AGENT_URL="http://127.0.0.1:9"
    )
    assert code == 0
    assert workspace.identities() == []
    assert "going on without it" in err


async def test_gits_question_which_ssh_this_is(workspace: InWorkspace) -> None:
    """git runs `ssh -G HOST` first when it does not know the program by its name."""
    code, out, err = await workspace.run(workspace.program, "gitssh", "--", "-G", "host", CODER_AGENT_URL="")
    assert code == 0
    assert "going on without it" not in err
    assert "hostname host" in out


@pytest.mark.spec("daemon", 45)
async def test_git_gets_its_login(workspace: InWorkspace) -> None:
    deployment = workspace.deployment
    provider = {"type": "gitlab", "regex": "gitlab"}
    await deployment.request("PUT", "external-auth/gl", provider)
    await deployment.request("PUT", "external-auth/gl/token", {"access_token": "glpat-1234"})
    assert (await workspace.run("git", "init", "-q", "."))[0] == 0
    code, out, err = await workspace.run(
        "git",
        "-c",
        "credential.helper=",
        "credential",
        "fill",
        given=b"protocol=https\nhost=gitlab.example.com\n\n",
        GIT_ASKPASS=workspace.program,
    )
    assert (code, err) == (0, "")
    assert "username=oauth2\npassword=glpat-1234\n" in out


@pytest.mark.spec("daemon", 45)
async def test_unknown_hosts_and_other_uses(workspace: InWorkspace) -> None:
    question = "Username for 'https://github.com': "
    code, out, err = await workspace.run(workspace.program, question, GIT_PREFIX="")
    assert (code, out) == (1, "")
    assert err.strip()
    assert "Traceback" not in err
    environment = {name: value for name, value in workspace.environment.items() if name != "GIT_PREFIX"}
    workspace.environment = environment
    code, out, err = await workspace.run(workspace.program, question)
    assert code == 2
    assert "Usage:" in err


@pytest.mark.spec("daemon", 45)
async def test_the_owner_authorises_the_host_meanwhile(workspace: InWorkspace) -> None:
    deployment = workspace.deployment
    await deployment.request("PUT", "external-auth/github", {"type": "github", "regex": "github"})
    question = "Password for 'https://potato@github.com': "
    code, _, err = await workspace.run(workspace.program, question, GIT_PREFIX="", CODER_CHAT_AGENT="true")
    assert code == 1
    assert "/external-auth/github" in err
    process = await workspace.start(workspace.program, question, GIT_PREFIX="")
    assert process.stderr is not None
    assert await process.stderr.readline() == b"Open the following URL to authenticate with Git:\n"
    await deployment.request("PUT", "external-auth/github/token", {"access_token": "gho_1234"})
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, out) == (0, b"gho_1234\n")
