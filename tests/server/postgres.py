"""A PostgreSQL server of the test run's own: Debian's binaries, a private folder, a private port on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def find_binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].split(".")[0]))
    if found:
        return found[-1].parent
    onpath = shutil.which("initdb")
    return Path(onpath).resolve().parent if onpath else None


class Postgres:
    """A running server. `new_database` gives the address of an empty database."""

    def __init__(self, binaries: Path, directory: Path, user: str | None) -> None:
        self._binaries, self._directory, self._user = binaries, directory, user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self) -> None:
        data = str(self._directory / "data")
        self._run("initdb", "-D", data, "-U", "tests", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        settings = f"-p {self._port} -k {self._directory} -h 127.0.0.1 -c fsync=off -c max_connections=60"
        log = str(self._directory / "log")
        self._run("pg_ctl", "-D", data, "-o", settings, "-l", log, "-w", "-t", "30", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._directory / "data"), "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        name = f"t{uuid.uuid4().hex}"
        self._run("createdb", "-h", str(self._directory), "-p", str(self._port), "-U", "tests", name)
        return f"postgresql+asyncpg://tests@127.0.0.1:{self._port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        result = subprocess.run(
            [self._binaries / program, *arguments],
            user=self._user,
            cwd=self._directory,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            stdout=subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE,  # the server would keep a pipe open
            stderr=subprocess.DEVNULL if program == "pg_ctl" else subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if result.returncode != 0:
            log = self._directory / "log"
            raise RuntimeError(f"{program}: {result.stdout or (log.read_text() if log.exists() else '')}")


@contextmanager
def running() -> Iterator[Postgres]:
    """One server for as long as the body runs; skips (in CI: fails) where PostgreSQL is not installed."""
    binaries = find_binaries()
    if binaries is None:
        reason = "PostgreSQL is not installed (Debian package: postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: a socket's path has room for 107 bytes
    if user is not None:
        shutil.chown(directory, user)
    server = Postgres(binaries, directory, user)
    try:
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
