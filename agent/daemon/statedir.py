"""The state directory of one agent: `<state-dir>/<agent id>/`, private, and used by one process at a time.

Everything here does blocking I/O: call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from pathlib import Path
from uuid import UUID

MAX_AGE = 7 * 24 * 3600
"""Seconds after which the directory of an agent that nobody runs any more is removed."""


class StateDirectoryError(Exception):
    """The directory cannot be used; the text names it and what to do."""


class StateDirectory:
    """An open and locked state directory; `path` may be used until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


def open_state_directory(root: Path, agent_id: UUID) -> StateDirectory:
    """Make (0700) and lock the directory of `agent_id`. Raises `StateDirectoryError`."""
    path = root / str(agent_id)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        _check_private(root)
        _check_private(path)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateDirectoryError(
            f'state directory "{path}": {error.strerror or error}; make it writable for this user or name another one '
            "with --state-dir"
        ) from error
    if not _take(lock):
        os.close(lock)
        raise StateDirectoryError(f'state directory "{path}": another agent process is using it')
    return StateDirectory(path, lock)


def remove_old(root: Path, keep: UUID, max_age: float = MAX_AGE) -> list[Path]:
    """Remove the directories of other agents that nobody has locked and nothing was written to for `max_age` seconds.

    What cannot be read or removed stays. Returns what was removed.
    """
    removed = []
    for path in sorted(root.iterdir()):
        if path.name == str(keep) or not _is_agent_directory(path):
            continue
        try:
            if time.time() - _last_used(path) > max_age and _remove(path):
                removed.append(path)
        except OSError:
            continue  # it goes with the next start, or when its owner removes it
    return removed


def _check_private(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(0, "it is a symbolic link or no directory")
    if status.st_uid != os.geteuid():
        raise OSError(0, f"it belongs to user {status.st_uid}, not to this one ({os.geteuid()})")
    if status.st_mode & 0o077:
        os.chmod(path, 0o700)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_agent_directory(path: Path) -> bool:
    try:
        UUID(path.name)
    except ValueError:
        return False
    return path.is_dir() and not path.is_symlink()


def _last_used(path: Path) -> float:
    files = [file for file in (path / "journal", path / "lock") if file.exists()]
    return max(file.lstat().st_mtime for file in files or [path])


def _remove(path: Path) -> bool:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _take(lock):
            return False
        shutil.rmtree(path)
        return True
    finally:
        os.close(lock)
