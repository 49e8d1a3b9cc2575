"""The agent's configuration out of flags and environment (daemon.md §1.1, §1.2)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.control.headers import parse_headers
from agent.daemon.options import OPTIONS, Option, parse_record
from agent.process import home_directory

SUBSYSTEMS = ("envbox", "envbuilder", "exectrace")


class ConfigError(Exception):
    """The process cannot start: exit code 1. `problems` has one line per mistake, each naming its variable."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What the agent was told; `agent.daemon.options` describes each value. Durations are in seconds."""

    url: str
    token: str = field(repr=False)
    token_file: str
    token_in_environment: bool
    auth: str
    name: str
    header: tuple[tuple[str, str], ...] = field(repr=False)
    header_command: str = field(repr=False)
    state_dir: Path
    log_dir: Path
    script_data_dir: Path
    log_human: str
    log_json: str
    log_stackdriver: str
    no_reap: bool
    pprof_address: str
    prometheus_address: str
    debug_address: str
    status_socket: str
    ssh_max_timeout: float
    tailnet_listen_port: int
    terminal_idle: float
    terminal_history: int
    lower_priority: bool
    block_file_transfer: bool
    block_reverse_port_forwarding: bool
    block_local_port_forwarding: bool
    devcontainers_enable: bool
    devcontainers_project_discovery_enable: bool
    devcontainers_discovery_autostart_enable: bool
    socket_server_enabled: bool
    socket_path: Path
    boundary_log_proxy_socket_path: str
    subsystems: tuple[str, ...]
    """Of `CODER_AGENT_SUBSYSTEM`, in the order given."""
    credentials_directory: str
    """`$CREDENTIALS_DIRECTORY` of systemd; its file `agent-token` serves where neither token nor file is given."""


def parse_config(flags: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> AgentConfig:
    """The configuration. `flags` holds the texts given for each `Option.name`, in order. Raises `ConfigError`.

    A flag wins over its variable, and that over the default. Mistakes are collected and reported together.
    """
    places = _places(environment)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in OPTIONS:
        try:
            values[option.name] = _value(option, flags.get(option.name, ()), environment, places)
        except ValueError as error:
            problems.append(f"{_given_by(option, flags)}: {error}")
    try:
        values["subsystems"] = _subsystems(environment.get("CODER_AGENT_SUBSYSTEM", ""))
    except ValueError as error:
        problems.append(f"CODER_AGENT_SUBSYSTEM: {error}")
    values["credentials_directory"] = environment.get("CREDENTIALS_DIRECTORY", "")
    if values.get("url") == "":
        problems.append("CODER_AGENT_URL must be set")
    if values.get("auth") == "token" and not any(
        values[source] for source in ("token", "token_file", "credentials_directory")
    ):
        problems.append("Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set")
    if problems:
        raise ConfigError(problems)
    return AgentConfig(**values)


def _value(option: Option, given: Sequence[str], environment: Mapping[str, str], places: Mapping[str, str]) -> Any:
    variable = _variable(option, environment)
    if option.parse is parse_record:
        # The one option that may be repeated: the variable's items and those of each flag are one list.
        texts = [*([variable] if variable is not None else ()), *given]
        return parse_headers([item for text in texts for item in parse_record(text)])
    text = given[-1] if given else variable
    if text is None or (not text and not option.may_be_empty):
        text = option.default.format(**places)
        if not text:
            return ""
    return option.parse(text)


def _variable(option: Option, environment: Mapping[str, str]) -> str | None:
    if not option.variable:
        return None
    return environment.get(option.variable, environment.get(f"HOMEBREW_{option.variable}"))


def _given_by(option: Option, flags: Mapping[str, Sequence[str]]) -> str:
    return option.flag if flags.get(option.name) or not option.variable else option.variable


def _places(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "tmp": environment.get("TMPDIR") or "/tmp",  # noqa: S108 - the documented default
        "state": environment.get("XDG_STATE_HOME") or os.path.join(home_directory(environment), ".local/state"),
    }


def _subsystems(text: str) -> tuple[str, ...]:
    names = [name for item in text.split(",") if (name := item.strip())]
    for name in names:
        if name not in SUBSYSTEMS:
            raise ValueError(f'invalid subsystem "{name}"; known are {", ".join(SUBSYSTEMS)}')
    return tuple(dict.fromkeys(names))
