"""What runs in a terminal (terminal-ssh-http.md §1.3, §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.process import Command, build_command


class CommandContext(Protocol):
    """What every command of the workspace runs with. All of it is called in a thread and may raise."""

    def environment(self) -> dict[str, str]:
        """daemon.md §2.4 steps 1-7."""

    def shell(self) -> str:
        """The user's login shell."""

    def directory(self) -> str:
        """The working directory."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command line with what it runs in."""

    command: Command
    directory: str
    environment: Mapping[str, str] = field(repr=False)  # it holds the agent's token


def build_program(context: CommandContext, script: str) -> Program:
    """The login shell, or `script` run by the shell. Looks at files: call it in a thread.

    Raises `CommandError`, and what the context raises.
    """
    environment = terminal_environment(context.environment())
    return Program(build_command(script, context.shell()), context.directory(), environment)


def terminal_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """With `TERM`, and with a locale in which UTF-8 arrives whole where there is none (§1.3)."""
    result = {**environment, "TERM": "xterm-256color"}
    if result.get("LC_ALL"):
        return result
    locale = result.get("LC_CTYPE") or result.get("LANG") or ""
    if not any(name in locale.lower() for name in ("utf-8", "utf8")):
        result["LC_CTYPE"] = "C.UTF-8"
    return result
