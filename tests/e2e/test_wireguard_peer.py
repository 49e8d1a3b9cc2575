"""Our WireGuard device against wireguard-go, whose other end is the kernel's network stack.

Each scenario has a network namespace of its own. Needs Linux, /dev/net/tun, the right to make namespaces, and Debian's
wireguard-go, wireguard-tools and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.wireguard_host import SCENARIOS

ROOT = Path(__file__).parents[2]
TOOLS = ("wireguard-go", "wg", "ip", "unshare")


@pytest.fixture(scope="session")
def namespace() -> list[str]:
    """The command that runs another one in new namespaces."""
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


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_against_wireguard_go(namespace: list[str], scenario: str) -> None:
    run = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.e2e.wireguard_host", scenario],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr
