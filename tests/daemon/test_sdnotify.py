"""What systemd is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.daemon.sdnotify import Notifier


def test_states_arrive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        notifier.ready()
        notifier.status("not connected:\nno route")
        notifier.stopping()
        received = [systemd.recv(100) for _ in range(3)]
    assert received == [b"READY=1", b"STATUS=not connected: no route", b"STOPPING=1"]


def test_an_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")  # the kernel picks an abstract name
        name = systemd.getsockname()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).ready()
        assert systemd.recv(100) == b"READY=1"


def test_nobody_asked() -> None:
    Notifier({}).ready()


@pytest.mark.parametrize("calls", [1, 3])
def test_a_missing_socket_is_told_once(tmp_path: Path, calls: int) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with capture_logs() as logs:
        for _ in range(calls):
            notifier.ready()
    assert len(logs) == 1
