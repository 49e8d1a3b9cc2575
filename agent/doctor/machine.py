"""What the machine itself is like. These checks read and write files: call them in a thread."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.doctor.finding import Finding, Subject, failed, ok, warning
from agent.monitor import usage

LOW_SPACE: Final = 100 * 1024 * 1024
"""Bytes: with less, logs are soon kept in memory only."""
LOW_INODES: Final = 1000
HIGH_MEMORY: Final = 90
"""Percent."""
EXEC_LIMIT: Final = 5.0


def disk(subject: Subject) -> Finding:
    """Room and rights where the agent writes."""
    config = subject.config
    seen = []
    for name, path in (("state", config.state_dir), ("log", config.log_dir), ("script data", config.script_data_dir)):
        there = _existing(path)
        if not os.access(there, os.W_OK | os.X_OK):
            return failed(
                "disk",
                f'the {name} directory "{path}" cannot be written to',
                f"give this user rights on it, or name another one with --{name.replace(' ', '-')}-dir",
            )
        status = os.statvfs(there)
        free = status.f_bavail * status.f_frsize
        if free < LOW_SPACE or (status.f_files and status.f_favail < LOW_INODES):
            return warning(
                "disk",
                f'"{path}" has {free / 1e6:.0f} MB and {status.f_favail} files left',
                "make room: what scripts print cannot be kept on disk when the server is away",
            )
        seen.append(f"{name} {free / 1e9:.1f} GB")
    return ok("disk", "free: " + ", ".join(seen))


def temporary_directory(subject: Subject) -> Finding:
    """Whether programs can be run from the temporary directory: scripts that are too long for an argument are."""
    directory = subject.environment.get("TMPDIR") or "/tmp"  # noqa: S108 - that is what is looked at
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix="workspace-agent-doctor-") as private:
            program = Path(private) / "program"
            program.write_text("#!/bin/sh\nexit 0\n")
            program.chmod(0o700)
            ended = subprocess.run([str(program)], timeout=EXEC_LIMIT, check=False, stdin=subprocess.DEVNULL)
    except PermissionError as error:
        where = "it is mounted noexec" if error.filename and error.filename.endswith("program") else str(error)
        return warning(
            "temporary directory",
            f'no program can be run in "{directory}": {where}',
            "set TMPDIR to a directory that allows it; very long scripts and installers need one",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return failed("temporary directory", f'"{directory}": {error}', "repair it, or set TMPDIR to another one")
    if ended.returncode != 0:
        return failed("temporary directory", f"a program there ended with {ended.returncode}", "look at /bin/sh")
    return ok("temporary directory", f'programs run in "{directory}"')


def memory(root: Path = usage.ROOT) -> Finding:
    """The control group, and how much of its memory is left."""
    try:
        found = usage.memory(root)
    except usage.UsageError as error:
        return warning("control group", str(error), "mount /proc; the server is told nothing about memory without it")
    container = usage.is_container(root)
    kind = ("version 2" if usage.is_v2(root) else "version 1") if container else "none: this is a host"
    total = found.total or 0
    saw = f"{kind}; {found.used / 1e9:.1f} of {total / 1e9:.1f} GB of memory in use"
    if total and found.used * 100 >= HIGH_MEMORY * total:
        return warning("control group", saw, "give the workspace more memory, or end something: the kernel soon will")
    return ok("control group", saw)


def time_zones(names: Iterable[str] = ("Etc/UTC", "America/New_York")) -> Finding:
    """Time zone data: schedules of scripts may name a zone."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    for name in names:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, OSError):
            return warning("time zones", f"{name} is not known here", "install tzdata: CRON_TZ needs it")
    return ok("time zones", "known")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
