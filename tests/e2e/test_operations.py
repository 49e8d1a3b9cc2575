"""The commands that watch and steer the agent, and its local servers, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from agent.process.priority import default_oom
from agent.testing.deployment import CreatedAgent, Deployment
from agent.testing.processes import Component

PLANTED = {
    "known": "planted-known-9f8e7d6c",  # the value of a variable of the agent's commands
    "github": "ghp_plantedplantedplanted1234",
    "assigned": "planted-assigned-value-1",
    "url": "planted-url-password",
    "bearer": "planted.bearer.token",
    "key": "plantedkeymaterialplantedkeymaterial",
    "proxy": "planted-proxy-password",
    "own": "planted-own-variable",
}

DEFINITION = f"""
name: dev
env:
  DB_PASSWORD: {PLANTED["known"]}
scripts:
  - display_name: talkative
    run_on_start: true
    script: |
      echo "known $DB_PASSWORD"
      echo "github {PLANTED["github"]}"
      echo "api_key={PLANTED["assigned"]}"
      echo "clone https://me:{PLANTED["url"]}@git.example/x"
      echo "Authorization: Bearer {PLANTED["bearer"]}"
      echo "-----BEGIN OPENSSH PRIVATE KEY-----"
      echo "{PLANTED["key"]}"
      echo "-----END OPENSSH PRIVATE KEY-----"
"""


async def command(*arguments: str, environment: Mapping[str, str], cwd: Path) -> tuple[int, str]:
    """Exit code and output of `workspace-agent ARGUMENTS`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode is not None
    return process.returncode, output.decode()


class Place:
    """A server, an agent of it, and the environment of somebody in the workspace."""

    def __init__(self, deployment: Deployment, created: CreatedAgent, path: Path) -> None:
        self.deployment = deployment
        self.created = created
        self.path = path
        self.agent: Component = deployment.agent(created)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "PROXY" not in name.upper()},
            "HOME": str(path),
            "CODER_AGENT_URL": deployment.url,
            "CODER_AGENT_TOKEN_FILE": str(created.token_file),
            "CODER_AGENT_STATUS_SOCKET": str(path / "dev.sock"),
            "CODER_AGENT_LOG_DIR": str(path / "dev-logs"),
            "CODER_AGENT_STATE_DIR": str(path / "state"),
        }

    async def run(self, *arguments: str, **more: str) -> tuple[int, str]:
        return await command(*arguments, environment={**self.environment, **more}, cwd=self.path)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with Deployment(tmp_path) as deployment:
        yield Place(deployment, await deployment.create_agent(DEFINITION), tmp_path)


async def test_status_waits_tells_and_says_when_there_is_no_agent(place: Place) -> None:
    code, text = await place.run("status")
    assert code == 3
    assert "no agent answers" in text
    waiting = asyncio.create_task(place.run("status", "--wait", "ready", "--json"))
    await asyncio.sleep(0.5)
    await place.agent.start()
    code, text = await waiting
    assert code == 0, text
    status = json.loads(text)
    assert (status["lifecycle"], status["connected"], status["agent_name"]) == ("ready", True, "main")
    code, text = await place.run("status")
    assert code == 0
    assert re.search(r"lifecycle\s+ready", text)
    assert oct((place.path / "dev.sock").stat().st_mode)[-3:] == "600"


async def test_status_says_why_there_is_no_connection(place: Place) -> None:
    await place.deployment.server.kill()
    await place.agent.start()
    code, text = await place.run("status", "--wait", "connected", "--timeout", "2")
    assert code == 1
    assert "not connected after 2 s" in text
    assert "is the control plane running" in text
    await place.deployment.start_server()


async def test_drain_does_as_sigterm_does_and_tells_that_nothing_was_left(place: Place) -> None:
    await place.agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0
    code, text = await place.run("drain", "--json")
    assert (code, json.loads(text)) == (0, {"unfinished": [], "unsent": {}})
    assert await asyncio.wait_for(place.agent.wait(), 5) == 0
    assert (await place.run("drain"))[0] == 3
    assert not (place.path / "dev.sock").exists()


async def test_drain_tells_what_the_server_was_not_told(place: Place) -> None:
    await place.agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0
    await place.deployment.server.kill()
    code, text = await place.run("drain")
    assert code == 1
    assert "did not finish: delivery" in text
    assert "not sent to the server: 2 lifecycle states" in text
    await place.deployment.start_server()


async def test_how_much_is_logged_changes_by_signal_and_by_command(place: Place) -> None:
    await place.agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0

    async def level() -> str:
        return str(json.loads((await place.run("status", "--json"))[1])["log_level"])

    os.kill(place.agent.pid, signal.SIGUSR1)
    assert await level() == "debug"
    os.kill(place.agent.pid, signal.SIGUSR1)
    assert await level() == "info"
    assert (await place.run("log-level", "error"))[0] == 0
    assert await level() == "error"
    assert (await place.run("log-level", "loud"))[0] == 2


async def test_doctor_finds_nothing_wrong_and_does_not_disturb(place: Place) -> None:
    await place.agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0
    code, text = await place.run("doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(text)}
    assert code == 0, text
    for name in ("disk", "temporary directory", "time zones", "DNS", "TCP", "HTTP", "clock", "WebSocket", "token"):
        assert found[name]["outcome"] == "ok", found[name]
    assert found["DERP"]["outcome"] == "ok", found["DERP"]
    status = json.loads((await place.run("status", "--json"))[1])
    assert (status["connected"], status["attempts"]) == (True, 1)
    agent = await place.deployment.request("GET", f"workspaceagents/{place.created.id}")
    assert agent["status"] == "connected"


async def test_doctor_tells_a_wrong_token_from_a_missing_server(place: Place) -> None:
    wrong = place.path / "wrong"
    wrong.write_text("b7f3c8e2-1111-4222-8333-a5a5a5a5a5a5")
    code, text = await place.run("doctor", "--token-file", str(wrong))
    assert code == 1
    assert re.search(r"failed +token: .*\n +→ the token belongs to no agent", text)
    code, text = await place.run("doctor", "--url", "http://127.0.0.1:9")
    assert code == 1
    assert re.search(r"failed +TCP: ", text)
    code, text = await place.run("doctor", CODER_AGENT_URL="")
    assert code == 1
    assert "CODER_AGENT_URL must be set" in text


@pytest.mark.spec("daemon", 53)
async def test_no_secret_is_in_a_bundle_a_metric_a_debug_page_or_the_log(place: Place) -> None:
    secrets = {**PLANTED, "token": place.created.token_file.read_text().strip()}
    await place.agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0
    archive = place.path / "bundle.tar.gz"
    code, text = await place.run(
        "bundle",
        "--output",
        str(archive),
        MY_API_TOKEN=PLANTED["own"],
        ALL_PROXY=f"http://me:{PLANTED['proxy']}@127.0.0.1:9",
    )
    assert code == 0, text
    assert oct(archive.stat().st_mode)[-3:] == "600"
    with tarfile.open(archive) as packed:
        content = {entry.name: packed.extractfile(entry).read().decode() for entry in packed}  # type: ignore[union-attr]
    names = {name.removeprefix("workspace-agent-bundle/") for name in content}
    assert {"status.json", "doctor.json", "metrics.txt", "manifest.json", "environment.txt"} <= names
    assert "logs/coder-agent.log" in names
    assert any(name.startswith(("logs/coder-startup", "logs/coder-script")) for name in names), names
    for kind, secret in secrets.items():
        for name, packed_text in content.items():
            assert secret not in packed_text, f"{kind} is in {name}"
    connector = aiohttp.UnixConnector(str(place.path / "dev.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        for page in ("status", "debug/manifest", "debug/prometheus", "debug/logs", "debug/stacks", "debug/magicsock"):
            async with session.get(f"http://agent/{page}") as answer:
                shown = await answer.text()
            for kind in ("token", "known"):
                assert secrets[kind] not in shown, f"{kind} is in {page}"
    assert secrets["token"] not in (place.path / "dev-logs/coder-agent.log").read_text()
    code, text = await place.run("bundle", "--output", str(archive))
    assert code == 1
    assert "File exists" in text


def taken_port() -> tuple[socket.socket, int]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock, int(sock.getsockname()[1])


def free_port() -> int:
    sock, port = taken_port()
    sock.close()
    return port


@pytest.mark.spec("daemon", 5)
async def test_local_servers_are_optional_and_ports_that_are_taken_stop_nothing(place: Place) -> None:
    occupied, taken = taken_port()
    metrics = free_port()
    agent = place.deployment.agent(
        place.created,
        "--pprof-address=",
        f"--debug-address=127.0.0.1:{taken}",
        f"--prometheus-address=127.0.0.1:{metrics}",
    )
    with occupied:
        await agent.start()
        assert (await place.run("status", "--wait", "ready"))[0] == 0
        async with aiohttp.ClientSession() as session:
            for path in ("", "metrics", "any/thing"):
                async with session.post(f"http://127.0.0.1:{metrics}/{path}") as answer:
                    assert answer.status == 200
                    assert answer.content_type == "text/plain"
                    assert 'agent_lifecycle_state{state="ready"} 1' in await answer.text()
    assert "the debug server cannot listen on 127.0.0.1" in agent.printed()
    listening = await listening_ports(agent.pid)
    assert listening == {metrics}


async def listening_ports(pid: int) -> set[int]:
    """TCP ports that a process listens on, by the kernel's table."""

    def look() -> set[int]:
        inodes = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        ports = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
        return ports

    return await asyncio.to_thread(look)


@pytest.mark.spec("daemon", 8)
@pytest.mark.spec("terminal-ssh-http", 23)
@pytest.mark.parametrize("explicit", [False, True])
async def test_scripts_give_way_to_the_agent_and_do_not_see_how(place: Place, explicit: bool) -> None:
    seen = place.path / "seen"
    definition = f"""
name: polite
scripts:
  - display_name: look
    run_on_start: true
    script: 'nice > {seen}; cat /proc/self/oom_score_adj >> {seen}; env | grep CODER_PROC >> {seen}; true'
"""
    own_nice = os.getpriority(os.PRIO_PROCESS, 0)
    own_oom = int(await asyncio.to_thread(Path("/proc/self/oom_score_adj").read_text))
    expected = [str(min(own_nice + 5, 19)), str(default_oom(own_oom))]
    environment = {"CODER_PROC_PRIO_MGMT": ""}
    if explicit:
        environment |= {"CODER_PROC_OOM_SCORE": "1000", "CODER_PROC_NICE_SCORE": "13"}
        expected = ["13", "1000"]
    agent = place.deployment.agent(await place.deployment.create_agent(definition), environment=environment)
    await agent.start()
    code, text = await place.run("status", "--wait", "ready", "--socket", str(place.path / "polite.sock"))
    assert code == 0, text
    assert (await asyncio.to_thread(seen.read_text)).split() == expected
    assert os.getpriority(os.PRIO_PROCESS, agent.pid) == own_nice


async def test_commands_do_without_the_token_where_the_owner_says_so(place: Place) -> None:
    seen = place.path / "seen"
    created = await place.deployment.create_agent(
        f"name: quiet\nscripts:\n  - display_name: look\n    run_on_start: true\n    script: env > {seen}\n"
    )
    token = (await asyncio.to_thread(created.token_file.read_text)).strip()
    agent = place.deployment.agent(created, "--token-in-environment=false")
    await agent.start()
    code, text = await place.run("status", "--wait", "ready", "--socket", str(place.path / "quiet.sock"))
    assert code == 0, text
    environment = await asyncio.to_thread(seen.read_text)
    assert token not in environment
    assert "CODER_AGENT_TOKEN=" not in environment
    assert f"CODER_AGENT_TOKEN_FILE={created.token_file}\n" in environment
    assert f"CODER_AGENT_STATUS_SOCKET={place.path / 'quiet.sock'}\n" in environment


@pytest.mark.spec("daemon", 54)
@pytest.mark.parametrize("planted", ["links", "foreign"])
async def test_what_others_planted_in_the_temporary_directory_is_refused(place: Place, planted: str) -> None:
    """Everything at its default place in a directory that everybody may write to."""
    if planted == "foreign" and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    shared, victim = place.path / "shared", place.path / "victim"
    shared.mkdir(mode=0o1777)
    victim.mkdir()
    names = ["coder-agent.log", "coder-script-data", "coder-script.log"]
    for name in names:
        if planted == "links":
            (shared / name).symlink_to(victim / name)
        elif name.endswith(".log"):
            (shared / name).write_text("")
            os.chown(shared / name, 12345, 12345)
        else:
            (shared / name).mkdir(mode=0o777)
            os.chown(shared / name, 12345, 12345)
    created = await place.deployment.create_agent(
        "name: careful\nscripts:\n  - display_name: talk\n    run_on_start: true\n    log_path: coder-script.log\n"
        "    script: echo here\n"
    )
    agent = place.deployment.agent(
        created, f"--log-dir={shared}", f"--script-data-dir={shared}", environment={"TMPDIR": str(shared)}
    )
    await agent.start()
    await place.run("status", "--wait", "ready", "--socket", str(place.path / "careful.sock"))
    status = json.loads((await place.run("status", "--json", "--socket", str(place.path / "careful.sock")))[1])
    assert status["lifecycle"] == "start_error"
    assert list(victim.iterdir()) == []
    for name in names:
        path = shared / name
        if planted == "links":
            assert path.is_symlink()
        else:
            assert path.stat().st_uid == 12345
            assert not (list(path.iterdir()) if path.is_dir() else path.read_text())


async def test_no_web_page_gets_at_a_local_server_under_a_name_of_its_own(place: Place) -> None:
    port, path = free_port(), place.path / "debug.sock"
    agent = place.deployment.agent(
        place.created, f"--debug-address=127.0.0.1:{port}", f"--prometheus-address=unix:{path}"
    )
    await agent.start()
    assert (await place.run("status", "--wait", "ready"))[0] == 0
    url = f"http://127.0.0.1:{port}/ready"
    async with aiohttp.ClientSession() as session:
        for host, status in (("127.0.0.1", 200), (f"localhost:{port}", 200), ("[::1]", 200), ("evil.example", 421)):
            async with session.get(url, headers={"Host": host}) as answer:
                assert answer.status == status, host
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.0 200")
    writer.close()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://any.name/") as answer,
    ):
        assert answer.status == 200
    assert path.stat().st_mode & 0o777 == 0o600
