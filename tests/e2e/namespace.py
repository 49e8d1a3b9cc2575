"""Namespaces for tests that need a network stack of their own, most of them wireguard-go, too.

Needs Linux, /dev/net/tun, the right to make namespaces, and Debian's wireguard-go, wireguard-tools and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache

import pytest

TOOLS = ("wireguard-go", "wg", "ip", "unshare")


@cache
def command_in_namespace() -> list[str]:
    """What to put before a command to run it in new namespaces. Skips the test where there are none."""
    command = _command("wireguard-go as the peer", TOOLS)
    _try("TUN device", command, "ip", "tuntap", "add", "tun9", "mode", "tun")
    return command


@cache
def command_in_bare_namespace() -> list[str]:
    """The same for tests that need nothing but a loopback interface with addresses of their own."""
    command = _command("a network of its own", ("ip", "unshare"))
    _try("network", command, "ip", "link", "set", "lo", "up")
    return command


def _command(what: str, tools: Sequence[str]) -> list[str]:
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        reason = f"{what} needs {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}: .ci/run must install it")
        pytest.skip(reason)
    # The last process ends all others with it, wireguard-go too.
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    return command if os.getuid() == 0 else [*command, "--map-root-user"]


def _try(what: str, command: Sequence[str], *test: str) -> None:
    outcome = subprocess.run([*command, *test], capture_output=True, text=True, timeout=30)
    if outcome.returncode != 0:
        pytest.skip(f"this machine gives no {what} in a namespace: {outcome.stderr.strip()}")
