"""User secrets as files (daemon.md §2.5). Blocking: call it in a thread. No value is ever logged."""

from __future__ import annotations

import os
import secrets as random
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.api.manifest import Secret
from agent.daemon.logfile import get_logger


def write_secret_files(secrets: Iterable[Secret], home: str) -> None:
    """Write every secret that names a file, in order. An empty `home` means that it is not known.

    What cannot be written is told in a warning and left out. Parents are made 0700, files 0600; a file that exists
    keeps its mode. A symbolic link in place of the file is refused.
    """
    log = get_logger("agent.secrets")
    written: set[str] = set()
    for secret in secrets:
        path = secret.file_path
        if not path:
            continue
        if path.startswith("~/"):
            if not home:
                log.warning("secret file left out: the home directory is not known", path=path)
                continue
            path = os.path.join(home, path[2:])
        path = os.path.normpath(path)
        if path in written:
            log.warning("two secrets name the same file; the later one is written", path=path)
        written.add(path)
        try:
            _write(Path(path), secret.value)
        except (OSError, ValueError) as error:
            log.warning("secret file could not be written", path=path, error=error)


def _write(path: Path, value: bytes) -> None:
    _make_private(path.parent)
    mode = 0o600
    try:
        status = path.lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "there is something else than a regular file, which is left alone")
        mode = stat.S_IMODE(status.st_mode)
    temporary = path.with_name(f".{path.name}.{random.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(value)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_private(directory: Path) -> None:
    # Path.mkdir(parents=True) gives parents the default mode.
    if not directory.is_dir():
        _make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
