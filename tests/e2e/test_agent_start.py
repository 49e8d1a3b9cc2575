"""The command itself: each mistake at start ends it with exit code 1 and a message that names what is at fault."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

GOOD = {"CODER_AGENT_URL": "http://127.0.0.1:1", "CODER_AGENT_TOKEN": "9c2b7c1e-7d3a-4c56-9a53-0f8a2f1d1c11"}


async def start(directory: Path, environment: dict[str, str], *flags: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "agent", *flags),
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.spec("daemon", 1)
async def test_nothing_given(tmp_path: Path) -> None:
    status, output = await start(tmp_path, {})
    assert status == 1
    assert "error: CODER_AGENT_URL must be set\n" in output
    assert "error: Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set\n" in output


@pytest.mark.spec("daemon", 1)
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CODER_AGENT_TOKEN": "", "CODER_AGENT_TOKEN_FILE": "/nowhere"}, 'read token file "/nowhere": No such file'),
        ({"CODER_AGENT_TOKEN": "", "CODER_AGENT_TOKEN_FILE": "/"}, 'read token file "/": Is a directory'),
        (
            {"CODER_AGENT_TOKEN": "", "CREDENTIALS_DIRECTORY": "/nowhere"},
            'read systemd credential "/nowhere/agent-token"',
        ),
        ({"CODER_AGENT_TOKEN": "two words"}, "CODER_AGENT_TOKEN: it is no token"),
        ({"CODER_AGENT_AUTH": "magic"}, "CODER_AGENT_AUTH: unknown agent auth type: magic"),
        ({"CODER_AGENT_SUBSYSTEM": "magic"}, 'CODER_AGENT_SUBSYSTEM: invalid subsystem "magic"'),
        ({"CODER_AGENT_HEADER": "magic"}, 'CODER_AGENT_HEADER: item 1 has no "="'),
    ],
)
async def test_a_mistake(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    status, output = await start(tmp_path, {**GOOD, **environment})
    assert status == 1
    assert f"error: {message}" in output


@pytest.mark.spec("daemon", 3)
async def test_a_header_command_without_equals_sign(tmp_path: Path) -> None:
    status, output = await start(tmp_path, GOOD, "--agent-header-command", 'echo A=1; echo "magic"')
    assert status == 1
    assert "error: line 2 of the output of CODER_AGENT_HEADER_COMMAND" in output


async def test_wrong_flags(tmp_path: Path) -> None:
    for flag in ("--magic", "--no-reap=perhaps", "--ssh-max-timeout=soon"):
        status, output = await start(tmp_path, GOOD, flag)
        assert status == 1
        assert flag.partition("=")[0] in output


@pytest.mark.spec("daemon", 9)
async def test_the_first_line_of_version(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "--version"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.splitlines()[0].startswith(b"Coder v2.")
