"""What a definition says. The names are the keys of the file; `docs/howto` shows them at work.

Each class may have `mistakes()`: pairs of a field and what is wrong with it, for what the types alone do not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec

Seconds = Annotated[int, "seconds"]
"""Written `30`, `30s`, `1m30s`; whole seconds."""
Nanoseconds = Annotated[int, "nanoseconds"]
"""Written like `Seconds`, but also `500ms`."""

WORKSPACE_NAME = re.compile(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", re.ASCII)
SLUG = re.compile(r"[a-z0-9](-?[a-z0-9])*", re.ASCII)
VARIABLE = re.compile(r"[^=\s]+")

Found = Iterator[tuple[str, str]]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file."""

    unique: ClassVar[str | None] = None
    """The field that may have each value only once within a list."""

    def mistakes(self) -> Found:
        yield from ()


def _web_address(field: str, text: str) -> Found:
    if text and (urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).netloc):
        yield field, f"{text!r} is no address; it looks like http://localhost:8080/health"


class Script(Part, frozen=True, kw_only=True):
    """A program that runs at the start, at the stop, or by a schedule (daemon.md §4)."""

    unique: ClassVar[str | None] = "display_name"

    display_name: str
    script: str
    icon: str = ""
    log_path: str = ""
    cron: str = ""
    run_on_start: bool = False
    run_on_stop: bool = False
    start_blocks_login: bool = False
    timeout: Nanoseconds = 0

    def mistakes(self) -> Found:
        if not 0 < len(self.display_name) <= 127:
            yield "display_name", "must have 1 to 127 characters"
        if not self.script.strip():
            yield "script", "is empty"
        if not (self.run_on_start or self.run_on_stop or self.cron):
            yield "script", "never runs: set run_on_start, run_on_stop or cron"
        if self.start_blocks_login and not self.run_on_start:
            yield "start_blocks_login", "only a script with run_on_start can block the login"


class Metadata(Part, frozen=True, kw_only=True):
    """A value that the agent measures again and again by a script. No interval: once."""

    unique: ClassVar[str | None] = "key"

    key: str
    script: str
    display_name: str = ""
    interval: Seconds = 0
    timeout: Seconds = 0

    def mistakes(self) -> Found:
        if not 0 < len(self.key.encode(errors="replace")) <= 127:
            yield "key", "must have 1 to 127 bytes"
        if len(self.display_name) > 127:
            yield "display_name", "must have at most 127 characters"
        if not self.script.strip():
            yield "script", "is empty"


class Healthcheck(Part, frozen=True, kw_only=True):
    """`threshold` failures in a row are forgiven."""

    url: str
    interval: Seconds = 5
    threshold: int = 3

    def mistakes(self) -> Found:
        yield from _web_address("url", self.url)
        if not 0 < self.interval <= 86400:
            yield "interval", "must be from 1s to 24h"
        if not 0 < self.threshold <= 1000:
            yield "threshold", "must be from 1 to 1000"


class App(Part, frozen=True, kw_only=True):
    """Something that people open: a web address inside the workspace, or a command for its terminal."""

    unique: ClassVar[str | None] = "slug"

    slug: str
    display_name: str = ""
    url: str = ""
    command: str = ""
    icon: str = ""
    group: str = ""
    external: bool = False
    subdomain: bool = False
    hidden: bool = False
    open_in: Literal["slim-window", "tab"] = "slim-window"
    share: Literal["owner", "authenticated", "organization", "public"] = "owner"
    healthcheck: Healthcheck | None = None

    def mistakes(self) -> Found:
        if len(self.slug) > 32 or SLUG.fullmatch(self.slug) is None:
            yield "slug", "must be of lower-case letters, digits and single hyphens, at most 32 characters"
        if bool(self.url) == bool(self.command):
            yield "url", "an app has either a url or a command"
        if len(self.display_name) > 64:
            yield "display_name", "must have at most 64 characters"
        if len(self.group) > 64:
            yield "group", "must have at most 64 characters"
        if self.external and self.healthcheck:
            yield "healthcheck", "an external app is not checked"


class Secret(Part, frozen=True, kw_only=True):
    """A value that commands get as variable `env`, as file `file`, or both. It is never shown again."""

    env: str = ""
    file: str = ""
    value: str

    def mistakes(self) -> Found:
        if not self.env and not self.file:
            yield "env", "a secret needs env (name of a variable) or file (a path)"
        if self.env and VARIABLE.fullmatch(self.env) is None:
            yield "env", f"{self.env!r} is no name of a variable"

    def __repr__(self) -> str:
        return f"Secret(env={self.env!r}, file={self.file!r})"


class MemoryMonitor(Part, frozen=True, kw_only=True):
    """Alerts from `threshold` percent on."""

    enabled: bool = True
    threshold: int = 80

    def mistakes(self) -> Found:
        if not 0 <= self.threshold <= 100:
            yield "threshold", "is a percentage, from 0 to 100"


class VolumeMonitor(MemoryMonitor, frozen=True, kw_only=True):
    """The same for the file system at `path`."""

    unique: ClassVar[str | None] = "path"

    path: str

    def mistakes(self) -> Found:
        yield from super().mistakes()
        if not self.path.startswith("/") or len(self.path) > 512:
            yield "path", "must be absolute, with at most 512 characters"


class Resources(Part, frozen=True, kw_only=True):
    """What is watched in the workspace (agent-api.md §11.7)."""

    memory: MemoryMonitor | None = None
    volumes: list[VolumeMonitor] = []


class AgentDefinition(Part, frozen=True, kw_only=True):
    """A whole file: one workspace with one agent."""

    name: str
    owner: str = ""
    agent_name: str = "main"
    os: Literal["linux", "darwin", "windows"] = "linux"
    architecture: Literal["amd64", "arm64", "armv7"] = "amd64"
    instance_id: str = ""
    directory: str = ""
    env: dict[str, str] = {}
    secrets: list[Secret] = []
    scripts: list[Script] = []
    metadata: list[Metadata] = []
    apps: list[App] = []
    motd_file: str = ""
    connection_timeout: Seconds = 120
    troubleshooting_url: str = ""
    resources: Resources = Resources()

    def mistakes(self) -> Found:
        if len(self.name) > 32 or WORKSPACE_NAME.fullmatch(self.name) is None:
            yield "name", "must be of letters, digits and single hyphens, at most 32 characters"
        if len(self.agent_name) > 64 or WORKSPACE_NAME.fullmatch(self.agent_name) is None:
            yield "agent_name", "must be of letters, digits and single hyphens, at most 64 characters"
        if len(self.instance_id) > 128 or not self.instance_id.isprintable() or " " in self.instance_id:
            yield "instance_id", "must have at most 128 characters, without spaces"
        for name in self.env:
            if VARIABLE.fullmatch(name) is None:
                yield "env", f"{name!r} is no name of a variable"
        if not 0 <= self.connection_timeout <= 86400:
            yield "connection_timeout", "must be from 0 (none) to 24h"
        yield from _web_address("troubleshooting_url", self.troubleshooting_url)
