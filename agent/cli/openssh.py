"""OpenSSH's programs, and how they find agents: through `workspace-agent ssh --stdio` as their ProxyCommand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from agent.cli import session
from agent.cli.errors import CliError

AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
"""Names and ids of agents. What is none of them must not become an option, or a word for a shell."""


def options(*arguments: str) -> list[tuple[str, str]]:
    """Names and values of ssh_config(5); `arguments` go to `ssh --stdio` before the host."""
    words = [shlex.quote(word).replace("%", "%%") for word in (*_program(), "ssh", "--stdio", *arguments)]
    return [
        ("ProxyCommand", " ".join([*words, "%n"])),
        # Whoever answers in the tunnel has the agent's keys there, as the server names them. Its host key is made out
        # of names that everybody may know, and would prove nothing.
        ("StrictHostKeyChecking", "no"),
        ("UserKnownHostsFile", "/dev/null"),
        ("LogLevel", "ERROR"),
        ("ConnectTimeout", "60"),
        # Connections live through two minutes without an answer.
        ("ServerAliveInterval", "15"),
        ("ServerAliveCountMax", "8"),
    ]


def execute(program: str, arguments: Sequence[str]) -> NoReturn:
    """Become `ssh` or `scp`, which must be installed, with our options. Raises `CliError`."""
    session.load()  # here the reason is clearer than as that of a ProxyCommand that ended
    argv = [program]
    for name, value in options():
        argv += ["-o", f"{name}={value}"]
    try:
        os.execvp(program, [*argv, *arguments])  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise CliError(f"cannot run {program}: {error.strerror}; install OpenSSH's client") from error


def installed(program: str) -> bool:
    """Whether it is found in PATH."""
    return shutil.which(program) is not None


def check_name(agent: str) -> str:
    """The same. Raises `CliError` for what cannot be an agent's name or id."""
    if AGENT.fullmatch(agent) is None:
        raise CliError(f"{agent!r} is no name or id of an agent; workspace-agent agents list shows them")
    return agent


def _program() -> list[str]:
    from agent.daemon.environment import executable_path

    found = executable_path(sys.argv[0])
    return [found] if found else [sys.executable, "-m", "agent"]
