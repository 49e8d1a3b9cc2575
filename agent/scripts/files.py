"""Directories and log files of scripts (daemon.md §4.1, §4.3, §8.3 S5). All of it is file I/O: call it in a thread."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from agent.api.manifest import Script
from agent.process import expand_path


class ScriptFileError(Exception):
    """A directory or log file of scripts cannot be used; the text names it and says what to do."""


class ScriptDirectories:
    """`<data>/coder-script-data`: one directory per log source, and `bin`, which is first in every command's PATH."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "coder-script-data"
        self.bin = self._root / "bin"

    def make_bin(self) -> None:
        """Make `bin` and what is above it. Raises `ScriptFileError`."""
        try:
            self._root.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self._root.parent, error) from error
        _make_private(self._root)
        _make_private(self.bin)

    def make_data(self, source_id: UUID) -> Path:
        """The directory of one log source. Raises `ScriptFileError`."""
        self.make_bin()
        path = self._root / str(source_id)
        _make_private(path)
        return path


def log_path(script: Script, log_dir: Path, environment: Mapping[str, str]) -> str:
    """Where a script's output goes; `environment` is the agent's own."""
    name = script.log_path or f"coder-script-{script.log_source_id}.log"
    return expand_path(name, environment, relative_to=str(log_dir))


def open_log(path: str, *, truncate: bool) -> int:
    """The descriptor of a log file (0600), its parents made (0700) if they are missing. Raises `ScriptFileError`.

    A run begins with an empty file; one that is taken over from a killed agent goes on behind what is there. Writes
    append, so that two scripts with one log file do not overwrite each other.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        _make_parents(os.path.dirname(path))
        fd = os.open(path, flags, 0o600)
    except IsADirectoryError as error:
        raise ScriptFileError(f'log file "{path}" is a directory: choose another log_path') from error
    except OSError as error:
        if os.path.islink(path):
            raise ScriptFileError(f'log file "{path}" is a symbolic link, which is not followed: remove it') from error
        raise ScriptFileError(f'log file "{path}" cannot be opened: {error.strerror}') from error
    except ValueError as error:
        raise ScriptFileError(
            f"log file {path!r} contains a NUL character in its name: choose another log_path"
        ) from error
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            if found.st_uid != os.geteuid() and os.geteuid() != 0:
                raise ScriptFileError(f'log file "{path}" belongs to user {found.st_uid}: remove it')
            if stat.S_IMODE(found.st_mode) != 0o600:
                os.fchmod(fd, 0o600)
            if truncate:
                os.ftruncate(fd, 0)
        elif not stat.S_ISCHR(found.st_mode):  # /dev/null is fine
            raise ScriptFileError(f'log file "{path}" is not a regular file: choose another log_path')
    except OSError as error:
        os.close(fd)
        raise ScriptFileError(f'log file "{path}" cannot be used: {error.strerror}') from error
    except ScriptFileError:
        os.close(fd)
        raise
    return fd


def _make_parents(directory: str) -> None:
    """Like makedirs, but every directory that it makes is 0700."""
    if directory and not os.path.isdir(directory):
        _make_parents(os.path.dirname(directory))
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            if not os.path.isdir(directory):  # two scripts may make the same parent at once
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from None


def _make_private(path: Path) -> None:
    """A directory of ours alone: one that somebody else prepared, or a link, is refused."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise ScriptFileError(f'"{path}" is not a directory: remove it or choose another script data directory')
        if found.st_uid != os.geteuid():
            raise ScriptFileError(
                f'"{path}" belongs to user {found.st_uid}, whose programs would run as yours: '
                "remove it or choose another script data directory"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> ScriptFileError:
    return ScriptFileError(f'directory "{path}" for script data cannot be made: {error.strerror}')
