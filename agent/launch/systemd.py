"""Installing the agent as a systemd unit: what is written where, all of it or nothing (daemon.md §7.4, C).

Blocking; meant for a command.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

UNIT = "workspace-agent.service"
COMMAND_LIMIT = 60.0
"""Seconds for one call of systemctl; none of them waits for the agent."""
_HERE = Path(__file__).parent / "units"


class InstallError(Exception):
    """Nothing has changed, or as little as the text says. It names what failed and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one kind of installation has its files; `manager` is the systemctl that knows the unit."""

    unit: Path
    config: Path
    manager: tuple[str, ...]
    source: Path

    @property
    def drop_in(self) -> Path:
        """What depends on this machine, so that the unit itself is the same everywhere."""
        return self.unit.with_name(self.unit.name + ".d") / "install.conf"

    @property
    def token(self) -> Path:
        """0600; systemd hands it to the agent as the credential `agent-token`."""
        return self.config / "token"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that an installation consists of."""
        return (self.token, self.unit, self.drop_in)


def system_place(root: Path = Path("/")) -> Place:
    """For the whole machine; needs root."""
    unit = root / "etc/systemd/system" / UNIT
    return Place(unit, root / "etc/workspace-agent", ("systemctl",), _HERE / UNIT)


def user_place(config_home: Path) -> Place:
    """For one user's own manager; `config_home` is the XDG directory."""
    unit = config_home / "systemd/user" / UNIT
    return Place(unit, config_home / "workspace-agent", ("systemctl", "--user"), _HERE / "workspace-agent-user.service")


def drop_in(*, executable: str, url: str, token: Path, auth: str, user: str | None) -> str:
    """The text that makes the unit this machine's. Raises `InstallError` for what a unit file could not hold."""
    for what, value in (("program", executable), ("URL", url), ("token file", str(token)), ("user", user or "")):
        if any(character in value for character in '"\\\n\r%') or any(ord(character) < 32 for character in value):
            raise InstallError(f"the {what} {value!r} has characters that a unit file cannot hold")
    lines = ["# Written by `workspace-agent install`; `workspace-agent uninstall` removes it.", "[Service]"]
    if user is not None:
        lines.append(f"User={user}")
    lines += [
        f'ExecStart="{executable}" agent',
        f'Environment="CODER_AGENT_URL={url}" "CODER_AGENT_AUTH={auth}"',
    ]
    if auth == "token":
        lines.append(f'LoadCredential="agent-token:{token}"')
    return "\n".join(lines) + "\n"


class Installer:
    """Puts an installation in `place` or takes it away. `run` is for tests."""

    def __init__(self, place: Place, run: Callable[[Sequence[str], float | None], None] | None = None) -> None:
        self._place = place
        self._run = run or _run

    def install(self, *, unit_drop_in: str, token: str | None) -> None:
        """Write, enable and start the unit, without waiting for the agent. Over an installation it is an upgrade: a
        running agent makes way for the new one. Raises `InstallError`; the files are then as they were before."""
        place = self._place
        before = {path: _read(path) for path in place.files}
        upgrade = before[place.unit] is not None
        made: list[Path] = []
        try:
            if token is not None:
                _write(place.token, token.encode(), 0o600, made)
            _write(place.unit, place.source.read_bytes(), 0o644, made)
            _write(place.drop_in, unit_drop_in.encode(), 0o644, made)
            self._systemctl("daemon-reload")
            self._systemctl("enable", UNIT)
            # Not awaited: the agent is ready when it is, and whoever wants to know asks `status --wait`.
            self._systemctl("reload-or-restart" if upgrade else "start", "--no-block", UNIT)
        except (InstallError, OSError) as error:
            left = self._put_back(before, made, upgrade)
            reason = str(error) if isinstance(error, InstallError) else f"{error.filename}: {error.strerror or error}"
            raise InstallError("; ".join([reason, *left])) from error

    def uninstall(self) -> bool:
        """Stop the agent as at the end of a workspace (stop scripts run), disable and remove it; False if there was
        none. State and logs stay. Raises `InstallError`."""
        place = self._place
        if not any(path.exists() for path in place.files):
            return False
        try:
            if place.unit.exists():
                self._systemctl("disable", UNIT)
                self._systemctl("stop", UNIT, limit=None)  # stop scripts take what they take; the unit has a limit
            for path in place.files:
                path.unlink(missing_ok=True)
            _remove_empty([place.drop_in.parent, place.config])
            self._systemctl("daemon-reload")
        except OSError as error:
            raise InstallError(f"{error.filename}: {error.strerror or error}; nothing else was removed") from error
        return True

    def _systemctl(self, *arguments: str, limit: float | None = COMMAND_LIMIT) -> None:
        self._run([*self._place.manager, *arguments], limit)

    def _put_back(self, before: dict[Path, bytes | None], made: Sequence[Path], upgrade: bool) -> list[str]:
        """Undo; what could not be undone."""
        left = []
        if not upgrade:
            # It may not be enabled; what matters is told by the failure that led here.
            with contextlib.suppress(InstallError):
                self._systemctl("disable", UNIT)
        for path, content in before.items():
            try:
                if content is None:
                    path.unlink(missing_ok=True)
                elif _read(path) != content:
                    _write(path, content, 0o600 if path == self._place.token else 0o644, [])
            except OSError as error:
                left.append(f"{path} could not be put back: {error.strerror or error}")
        _remove_empty(list(reversed(made)))
        try:
            self._systemctl("daemon-reload")
        except InstallError as error:
            left.append(str(error))
        return left


def _run(command: Sequence[str], limit: float | None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
    except FileNotFoundError as error:
        raise InstallError(f"there is no {command[0]} here: this machine is not run by systemd") from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{' '.join(command)}: no answer in {limit:g} s") from error
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror or error}") from error


def _write(path: Path, content: bytes, mode: int, made: list[Path]) -> None:
    """Replace the file at once; directories that had to be made for it are added to `made`, outermost first."""
    missing = []
    for directory in path.parents:
        if directory.is_dir():
            break
        missing.append(directory)
    for directory in reversed(missing):
        directory.mkdir(0o755)
        made.append(directory)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _remove_empty(directories: Sequence[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # not empty: somebody else's files are in it
            directory.rmdir()
