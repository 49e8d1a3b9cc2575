"""Namespaces for tests that need wireguard-go and a network stack of their own.

Needs Linux, /dev/net/tun, the right to make namespaces, and Debian's wireguard-go, wireguard-tools and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

TOOLS = ("wireguard-go", "wg", "ip", "unshare")


@cache
def command_in_namespace() -> list[str]:
    """What to put before a command to run it in new namespaces. Skips the test where there are none."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        reason = f"wireguard-go as the peer needs {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}: .ci/run must install it")
        pytest.skip(reason)
    # The last process ends all others with it, wireguard-go too.
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    if os.getuid() != 0:
        command.append("--map-root-user")
    tun = subprocess.run(
        [*command, "ip", "tuntap", "add", "tun9", "mode", "tun"], capture_output=True, text=True, timeout=30
    )
    if tun.returncode != 0:
        pytest.skip(f"this machine gives no TUN device in a namespace: {tun.stderr.strip()}")
    return command
