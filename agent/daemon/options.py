"""Every option of the agent as one table, and how the texts of flags and variables are read (daemon.md §1.1, §1.2).

The command line is built from this table, and so is `AgentConfig`: a row's value ends in the attribute that is called
like its flag, without `agent-` in front. Options of parts that are yet to come (SSH, tailnet, devcontainers, local
sockets and servers) are checked and kept, so that launch scripts of the Go agent work unchanged.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from agent.proxy import is_host

AUTH_TYPES = ("token", "aws-instance-identity", "azure-instance-identity", "google-instance-identity", "auto")


def parse_bool(text: str) -> bool:
    """An empty text is false."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("", "0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'"{text}" is neither true nor false')


def parse_int(text: str) -> int:
    """Base 10, signed, 64 bits."""
    if re.fullmatch(r"[+-]?[0-9]{1,19}", text, re.ASCII) is None or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError(f'"{text}" is no whole number')
    return int(text)


def parse_history(text: str) -> int:
    """Bytes of a terminal's output that are kept. To restore a screen all of it is looked at, at some 100 MB/s."""
    size = parse_int(text)
    if not 4096 <= size <= 1 << 20:
        raise ValueError(f"{size} bytes of a terminal's output cannot be kept; from 4096 to {1 << 20} are possible")
    return size


def parse_idle(text: str) -> float:
    """How long something that nobody uses goes on, in seconds."""
    seconds = parse_duration(text)
    if not 1 <= seconds <= 30 * 24 * 3600:
        raise ValueError(f'"{text}" is not from 1s to 30d')
    return seconds


def parse_port(text: str) -> int:
    """A port. As in the Go agent, only the lower 16 bits count."""
    return parse_int(text) & 0xFFFF


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_UNITS |= {"d": 24 * 3600, "w": 7 * 24 * 3600}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d|w)", re.ASCII)


def parse_duration(text: str) -> float:
    """Numbers with units, such as `1h30m` or `2d`, in seconds."""
    negative = text.startswith("-")
    digits = text[1:] if text.startswith(("-", "+")) else text
    if digits == "0":
        return 0.0
    if not digits or _PART.sub("", digits):
        raise ValueError(f'"{text}" is no duration; write it like 90s, 1h30m or 2d')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(digits))
    return -seconds if negative else seconds


def parse_record(text: str) -> list[str]:
    """One CSV record: `A=1,"B=x,y"` has two items."""
    if not text:
        return []
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise ValueError(f"no list of comma-separated values: {error}") from error


def parse_url(text: str) -> str:
    """The base URL of a control plane."""
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and is_host(url.host) and url.port != 0
    except (ValueError, IndexError):  # yarl has both for what it cannot read
        usable = False
    if not usable:
        # The text is not repeated: what is no URL may well be a token in the wrong place.
        raise ValueError("this is not the URL of a control plane; write it like https://coder.example.com")
    if url.user or url.password:
        raise ValueError("a user or password in the URL is not supported; send it with CODER_AGENT_HEADER")
    return text


def parse_auth(text: str) -> str:
    """One of the known methods of identification (agent-api.md §5.1)."""
    if text not in AUTH_TYPES:
        raise ValueError(f"unknown agent auth type: {text}; use {', '.join(AUTH_TYPES[:-1])} or {AUTH_TYPES[-1]}")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """One row. `variable` is empty where there is none; in `default`, `{tmp}` and `{state}` stand for directories."""

    flag: str
    variable: str
    parse: Callable[[str], Any]
    default: str
    help: str

    @property
    def name(self) -> str:
        """The attribute of `AgentConfig`."""
        return self.flag.removeprefix("--").removeprefix("agent-").replace("-", "_")

    @property
    def may_be_empty(self) -> bool:
        """Whether an empty text is a value of its own. Otherwise it means the default, as an unset variable does."""
        return self.parse in (str, parse_bool, parse_record)


# fmt: off
OPTIONS = (
    Option("--agent-url", "CODER_AGENT_URL", parse_url, "", "Base URL of the control plane. Required."),
    Option("--agent-token", "CODER_AGENT_TOKEN", str, "", "Token of this agent. A file is safer."),
    Option("--agent-token-file", "CODER_AGENT_TOKEN_FILE", str, "",
           "File with the token, used where no token is given; read again before each connection."),
    Option("--token-in-environment", "CODER_AGENT_TOKEN_IN_ENVIRONMENT", parse_bool, "true",
           "Give commands the token as CODER_AGENT_TOKEN; if false, git and other helpers need a token file."),
    Option("--auth", "CODER_AGENT_AUTH", parse_auth, "token",
           "How the agent proves who it is: token, a cloud's instance identity, or auto."),
    Option("--agent-name", "CODER_AGENT_NAME", str, "", "Picks one of several agents of a cloud instance."),
    Option("--agent-header", "CODER_AGENT_HEADER", parse_record, "",
           "Extra key=value header of each request to the control plane. Repeatable; the variable is one CSV record."),
    Option("--agent-header-command", "CODER_AGENT_HEADER_COMMAND", str, "",
           "Command, run once at start, that prints further key=value headers, one a line."),
    Option("--state-dir", "CODER_AGENT_STATE_DIR", Path, "{state}/workspace-agent",
           "Directory of what survives a restart: unsent logs, lifecycle, running scripts."),
    Option("--log-dir", "CODER_AGENT_LOG_DIR", Path, "{tmp}", "Directory of coder-agent.log and of script logs."),
    Option("--script-data-dir", "CODER_AGENT_SCRIPT_DATA_DIR", Path, "{tmp}", "Parent of coder-script-data."),
    Option("--log-human", "CODER_AGENT_LOGGING_HUMAN", str, "/dev/stderr", "Log for people goes here; empty for none."),
    Option("--log-json", "CODER_AGENT_LOGGING_JSON", str, "", "Log as JSON goes here."),
    Option("--log-stackdriver", "CODER_AGENT_LOGGING_STACKDRIVER", str, "", "Log for Stackdriver goes here."),
    Option("--no-reap", "", parse_bool, "false", "Do not reap orphaned processes when PID 1."),
    Option("--pprof-address", "CODER_AGENT_PPROF_ADDRESS", str, "127.0.0.1:6060", "Profiling server; empty for none."),
    Option("--prometheus-address", "CODER_AGENT_PROMETHEUS_ADDRESS", str, "127.0.0.1:2112",
           "Metrics server; empty for none."),
    Option("--debug-address", "CODER_AGENT_DEBUG_ADDRESS", str, "127.0.0.1:2113", "Debug server; empty for none."),
    Option("--status-socket", "CODER_AGENT_STATUS_SOCKET", str, "",
           "Socket of workspace-agent status and drain: none, or a path; status.sock in the state directory if empty."),
    Option("--ssh-max-timeout", "CODER_AGENT_SSH_MAX_TIMEOUT", parse_duration, "72h", "Longest SSH connection."),
    Option("--tailnet-listen-port", "CODER_AGENT_TAILNET_LISTEN_PORT", parse_port, "0",
           "UDP port of the tailnet; 0 for any."),
    Option("--terminal-idle", "CODER_AGENT_TERMINAL_IDLE", parse_idle, "5m",
           "How long a terminal goes on that nobody looks at."),
    Option("--terminal-history", "CODER_AGENT_TERMINAL_HISTORY", parse_history, "65536",
           "Bytes of a terminal's output that are shown to who comes back."),
    Option("--lower-priority", "CODER_AGENT_LOWER_PRIORITY", parse_bool, "true",
           "Commands get less of the processor than the agent, and are ended first when memory runs out (Linux)."),
    Option("--block-file-transfer", "CODER_AGENT_BLOCK_FILE_TRANSFER", parse_bool, "false",
           "Refuse file transfer over SSH."),
    Option("--block-reverse-port-forwarding", "CODER_AGENT_BLOCK_REVERSE_PORT_FORWARDING", parse_bool, "false",
           "Refuse ssh -R."),
    Option("--block-local-port-forwarding", "CODER_AGENT_BLOCK_LOCAL_PORT_FORWARDING", parse_bool, "false",
           "Refuse ssh -L."),
    Option("--devcontainers-enable", "CODER_AGENT_DEVCONTAINERS_ENABLE", parse_bool, "true", "Detect containers."),
    Option("--devcontainers-project-discovery-enable", "CODER_AGENT_DEVCONTAINERS_PROJECT_DISCOVERY_ENABLE",
           parse_bool, "true", "Search the working directory for devcontainer projects."),
    Option("--devcontainers-discovery-autostart-enable", "CODER_AGENT_DEVCONTAINERS_DISCOVERY_AUTOSTART_ENABLE",
           parse_bool, "false", "Start the devcontainer projects that were found."),
    Option("--socket-server-enabled", "CODER_AGENT_SOCKET_SERVER_ENABLED", parse_bool, "true",
           "Listen on the local socket."),
    Option("--socket-path", "CODER_AGENT_SOCKET_PATH", Path, "/tmp/coder-agent.sock",  # noqa: S108
           "Path of the local socket; clients in the workspace know the default."),
    Option("--boundary-log-proxy-socket-path", "CODER_AGENT_BOUNDARY_LOG_PROXY_SOCKET_PATH", str,
           "{tmp}/boundary-audit.sock", "Socket that takes audit logs of boundaries; empty for none."),
)
# fmt: on
