"""What commands run with: environment, shell and working directory (daemon.md §2.4)."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.api.manifest import Manifest, Secret
from agent.daemon.logfile import get_logger
from agent.process.expand import expand_env, home_directory
from agent.process.priority import VARIABLES


class NoManifestError(Exception):
    """A command was to run before the first manifest was there."""


class NoShellError(Exception):
    """The user's shell is not known; the text says where it was looked for."""


class CommandEnvironment:
    """The environment of everything that the agent starts, from the latest manifest.

    `process` is the agent's own environment; `executable` is the agent's program, empty where there is none that git
    could call; `token` gives the current agent token, None keeps it from commands; `priority` are the variables of
    `agent.process.priority`, which whoever starts a command takes out again; `bin_dir` is where scripts put programs
    for later commands. All of it looks at files: call it in a thread.
    """

    def __init__(
        self,
        *,
        process: Mapping[str, str],
        executable: str,
        bin_dir: Path,
        token: Callable[[], str] | None,
        priority: Mapping[str, str] | None = None,
        passwd: Path = Path("/etc/passwd"),
        user: str | None = None,
    ) -> None:
        self._process = {name: value for name, value in process.items() if name not in VARIABLES}
        self._priority = dict(priority or {})
        self._executable = executable
        self._bin_dir = bin_dir
        self._token = token
        self._passwd = passwd
        self._user = user or current_user(process)
        self._current: _Current | None = None

    def update(self, manifest: Manifest, secrets: Iterable[Secret], directory: str) -> None:
        """Use this manifest for commands started from now on; `directory` is the expanded one."""
        overlay = {name: expand_env(value, self._process) for name, value in manifest.environment.items()}
        for secret in secrets:
            if secret.env_name:
                overlay[secret.env_name] = secret.value.decode("utf-8", "surrogateescape")
        for name in [name for name, value in overlay.items() if not name or "=" in name or "\0" in name + value]:
            # One such entry would keep every command from starting.
            get_logger("agent.environment").warning(
                "variable left out: its name or value is not possible in an environment", variable=name
            )
            del overlay[name]
        try:
            shell = login_shell(self._user, self._process, self._passwd)
        except NoShellError:
            shell = ""  # told to whoever needs it, by `shell`
        # One assignment: commands read it from other threads.
        self._current = _Current(manifest, overlay, directory, shell)

    def environment(self, requested: Mapping[str, str] | None = None) -> dict[str, str]:
        """Steps 1 to 7 of §2.4; `requested` is what the caller (an SSH client) asks for.

        Raises `NoManifestError`.
        """
        current = self._manifested()
        manifest = current.manifest
        # Names are set once in steps 1 and 2: the first wins.
        result = {
            "CODER": "true",
            "CODER_WORKSPACE_NAME": manifest.workspace_name,
            "CODER_WORKSPACE_AGENT_NAME": manifest.agent_name,
            "CODER_WORKSPACE_OWNER_NAME": manifest.owner_name,
            "CODER_WORKSPACE_ID": str(manifest.workspace_id),
            "CS_DISABLE_GETTING_STARTED_OVERRIDE": "true",
        }
        if self._token is not None:
            result["CODER_AGENT_TOKEN"] = self._token()
        if self._executable:
            result["GIT_SSH_COMMAND"] = f"{shlex.quote(self._executable)} gitssh --"  # git gives it to a shell
        if manifest.vscode_proxy_uri:
            result["VSCODE_PROXY_URI"] = manifest.vscode_proxy_uri
        computed = {"USER": self._user, "LOGNAME": self._user}
        if current.shell:
            computed["SHELL"] = current.shell
        for source in (self._process, requested or {}, computed):
            for name, value in source.items():
                if not (source is self._process and (name, value) == ("GOTRACEBACK", "none")):
                    result.setdefault(name, value)
        result |= current.overlay
        if self._executable:
            result["GIT_ASKPASS"] = self._executable
        path = result.get("PATH", self._process.get("PATH", ""))
        result["PATH"] = f"{self._bin_dir}:{path}" if path else str(self._bin_dir)
        for name in VARIABLES:
            result.pop(name, None)  # they say what the command is to be, and are no business of a template's
        result |= self._priority
        result["SSH_CLIENT"] = "0.0.0.0 0 0"
        result["SSH_CONNECTION"] = "0.0.0.0 0 0.0.0.0 0"
        return result

    def shell(self) -> str:
        """The user's login shell. Raises `NoManifestError`, `NoShellError`."""
        return self._manifested().shell or login_shell(self._user, self._process, self._passwd)

    def directory(self) -> str:
        """The manifest's directory if it is one now, else the home directory. Raises `NoManifestError`."""
        wanted = self._manifested().directory
        return wanted if wanted and os.path.isdir(wanted) else home_directory(self._process)

    def _manifested(self) -> _Current:
        if self._current is None:
            raise NoManifestError("there is no manifest yet, so what commands run with is not known")
        return self._current


@dataclass(frozen=True, slots=True)
class _Current:
    """What the latest manifest said."""

    manifest: Manifest
    overlay: dict[str, str]
    directory: str
    shell: str


def executable_path(argument: str) -> str:
    """The program that commands can call the agent by; `argument` is what it was started as.

    `python -m agent` is not a program: the console command beside that Python stands for it. Empty without one.
    """
    path = os.path.abspath(argument)
    if os.access(path, os.X_OK) and os.path.isfile(path):
        return path
    beside = os.path.join(os.path.dirname(sys.executable), "workspace-agent")
    return beside if os.access(beside, os.X_OK) else ""


def current_user(process: Mapping[str, str]) -> str:
    """The name of the user that the agent runs as; its number where the user database does not know it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return process.get("USER") or str(os.geteuid())


def login_shell(user: str, process: Mapping[str, str], passwd: Path) -> str:
    """Field 7 of the user's line in `passwd`, else `$SHELL`. Raises `NoShellError`."""
    try:
        lines = passwd.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        lines = []  # as if the user had no line: `$SHELL` is the fallback for both
    for line in lines:
        if line.startswith(f"{user}:"):
            fields = line.split(":")
            if len(fields) >= 7 and fields[6].strip():
                return fields[6].strip()
            break
    if shell := process.get("SHELL"):
        return shell
    raise NoShellError(f"user {user} has no shell in {passwd} and SHELL is not set; set SHELL for the agent")
