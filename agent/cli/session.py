"""Where the people-facing commands keep who is logged in at which server."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.cli.errors import CliError


@dataclass(frozen=True, slots=True)
class Session:
    """A server and a user token for it."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Session(url={self.url!r})"


def path() -> Path:
    """`$XDG_CONFIG_HOME/workspace-agent/session.json`, or the same under `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME")
    directory = Path(base) if base else Path.home() / ".config"
    return directory / "workspace-agent" / "session.json"


def load() -> Session:
    """The session to use: `CODER_URL` with `CODER_SESSION_TOKEN`, else what `login` stored."""
    url, token = os.environ.get("CODER_URL"), os.environ.get("CODER_SESSION_TOKEN")
    if url and token:
        return Session(url.rstrip("/"), token)
    file = path()
    try:
        stored = json.loads(file.read_text())
        return Session(str(stored["url"]), str(stored["token"]))
    except FileNotFoundError:
        raise CliError("not logged in; run: workspace-agent login URL") from None
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CliError(f"{file} is damaged; run: workspace-agent login URL") from error


def store(session: Session) -> Path:
    """Keep it for later commands, readable by this user alone."""
    file = path()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent)  # made 0600
        with open(descriptor, "w") as handle:
            json.dump({"url": session.url, "token": session.token}, handle)
        os.replace(temporary, file)
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror}") from error
    return file
