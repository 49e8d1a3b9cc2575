"""The agent's side of the control plane: HTTP session, REST calls, RPC connection and its version."""

from agent.control.dial import ControlPlane
from agent.control.errors import (
    ControlError,
    RedirectError,
    RefusedError,
    UnreachableError,
    VersionMismatchError,
)
from agent.control.headers import HeaderError, parse_headers, run_header_command
from agent.control.http import ControlHttp
from agent.control.rest import RestClient

__all__ = [
    "ControlError",
    "ControlHttp",
    "ControlPlane",
    "HeaderError",
    "RedirectError",
    "RefusedError",
    "RestClient",
    "UnreachableError",
    "VersionMismatchError",
    "parse_headers",
    "run_header_command",
]
