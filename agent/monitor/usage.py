"""How much memory and disk is in use: of the container where there is one, else of the host (daemon.md §6.5).

`root` is where `/proc` and `/sys` are looked for. Everything reads files: call it in a thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
MAX_PARENTS: Final = 10
"""Levels of control groups above one without a limit that are asked for theirs."""
UNLIMITED_V1: Final = 9223372036854771712
"""What control groups of version 1 say where there is no limit."""

_CONTAINER_MARKS: Final = ("docker", ".slice", "lxc", "kubepods")


class UsageError(Exception):
    """It could not be read; the text names the file."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes; `total` is None where there is no limit."""

    used: int
    total: int | None


def memory(root: Path = ROOT) -> Usage:
    """Of the container, with the host's total where it has no limit; of the host where there is no container.

    Raises `UsageError`.
    """
    host = host_memory(root)
    if not is_container(root):
        return host
    try:
        container = container_memory(root)
    except UsageError:
        return host  # a layout that nobody foresaw must not hide that memory runs out
    return container if container.total is not None else Usage(container.used, host.total)


def host_memory(root: Path = ROOT) -> Usage:
    """`MemTotal`, and that less `MemAvailable`. Raises `UsageError`."""
    values = _numbers(root / "proc/meminfo", separator=":")
    try:
        total, available = values["MemTotal"] * 1024, values["MemAvailable"] * 1024
    except KeyError as error:
        raise UsageError(f'"{root / "proc/meminfo"}" has no {error}') from error
    return Usage(total - available, total)


def container_memory(root: Path = ROOT) -> Usage:
    """What the control group of this process uses, without file pages that can go, and its limit.

    Raises `UsageError`.
    """
    return _memory_v2(root) if is_v2(root) else _memory_v1(root)


def disk(path: str) -> Usage:
    """Of the file system that holds `path`. Raises `UsageError`."""
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise UsageError(f'"{path}": {error.strerror or error}') from error
    return Usage((status.f_blocks - status.f_bfree) * status.f_frsize, status.f_blocks * status.f_frsize)


def is_container(root: Path = ROOT) -> bool:
    """Whether this looks like the inside of a container."""
    try:
        groups = _read(root / "proc/1/cgroup")
    except UsageError:
        return False
    if any(mark in groups for mark in _CONTAINER_MARKS):
        return True
    if os.access(root / "var/run/secrets/kubernetes.io/serviceaccount/token", os.R_OK):
        return True
    if (root / "sys/fs/cgroup/cgroup.type").exists():  # absent in the root group only
        return True
    try:
        return "sysboxfs" in _read(root / "proc/mounts")
    except UsageError:
        return False


def is_v2(root: Path = ROOT) -> bool:
    """Whether the unified hierarchy of control groups is mounted."""
    return (root / "sys/fs/cgroup/cgroup.controllers").exists()


def group_v2(root: Path = ROOT) -> Path:
    """The directory of this process's control group."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            # Without a name space of its own, a container sees the host's path here but only its own group mounted.
            group = base / line[3:].strip().lstrip("/")
            return group if group.is_dir() and ".." not in group.parts else base
    return base


def limit_v2(group: Path, name: str, base: Path) -> str | None:
    """The first limit in `name` that is not `max`, of the group or of one above it; None when nothing limits."""
    for _ in range(MAX_PARENTS + 1):
        try:
            text = _read(group / name).strip()
        except UsageError:
            text = "max"  # the root group has no limits
        if text and not text.startswith("max"):
            return text
        if group == base:
            return None
        group = group.parent
    return None


def _memory_v2(root: Path) -> Usage:
    group = group_v2(root)
    used = _number(group / "memory.current") - _numbers(group / "memory.stat").get("inactive_file", 0)
    limit = limit_v2(group, "memory.max", root / "sys/fs/cgroup")
    try:
        return Usage(max(used, 0), int(limit) if limit is not None else None)
    except ValueError as error:
        raise UsageError(f'the memory limit of "{group}" is no number: {limit}') from error


def _memory_v1(root: Path) -> Usage:
    group = root / "sys/fs/cgroup/memory"
    inactive = _numbers(group / "memory.stat").get("total_inactive_file", 0)
    used = _number(group / "memory.usage_in_bytes") - inactive
    limit = _number(group / "memory.limit_in_bytes")
    return Usage(max(used, 0), limit if limit < UNLIMITED_V1 else None)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise UsageError(f'"{path}": {error.strerror or error}') from error


def _number(path: Path) -> int:
    text = _read(path).strip()
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f'"{path}" holds no number') from error


def _numbers(path: Path, separator: str | None = None) -> dict[str, int]:
    """Lines of a name and a number; others are left out."""
    found = {}
    for line in _read(path).splitlines():
        name, *rest = line.split(separator, 1)
        number = rest[0].split()[:1] if rest else []
        if number and number[0].isdigit():
            found[name] = int(number[0])
    return found
