"""Listening ports where there is no `/proc`: slower, by psutil."""

from __future__ import annotations

import sys
from typing import Any

import psutil

from agent.ports.scan import ListeningPort, ScanError


def scan(own_pid: int | None) -> tuple[ListeningPort, ...]:
    """As `Scanner.scan`. Without the rights to see all processes, only the user's own are looked at."""
    try:
        found = [_listener(item, item.pid) for item in psutil.net_connections("tcp")]
    except psutil.AccessDenied:
        found = [entry for process in psutil.process_iter() for entry in _of(process)]
    except (psutil.Error, OSError, NotImplementedError) as error:
        raise ScanError(f"psutil on {sys.platform}: {error}") from error
    ports: dict[int, ListeningPort] = {}
    for _, port, pid in sorted((entry for entry in found if entry is not None), key=lambda entry: entry[0]):
        if (own_pid is None or pid != own_pid) and port not in ports:
            ports[port] = ListeningPort(port, _name(pid))
    return tuple(ports.values())


def _listener(item: Any, pid: int | None) -> tuple[int, int, int | None] | None:
    """Address family, port and process of a connection, if it listens."""
    return (item.family, item.laddr.port, pid) if item.status == psutil.CONN_LISTEN else None


def _of(process: psutil.Process) -> list[tuple[int, int, int | None] | None]:
    try:
        return [_listener(item, process.pid) for item in process.net_connections("tcp")]
    except psutil.Error:
        return []  # another user's, or gone


def _name(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid is not None else ""
    except psutil.Error:
        return ""
