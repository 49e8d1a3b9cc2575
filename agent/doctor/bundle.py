"""An archive for somebody who helps: logs, status, configuration and findings. No secret goes in.

Known secrets (the token, values of variables whose names say so) are replaced wherever they stand, and so is what
looks like one: tokens, keys, passwords in URLs, authorisation headers. What is packed is text only.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from agent.logs import secret_values
from agent.logs.redact import Redactor

MAX_LOG: Final = 10 * 1024 * 1024
"""Bytes of each log file: its end."""
MAX_LOGS: Final = 40
"""Log files, the newest first."""
MARK: Final = "***"

_PATTERNS: Final = (
    # PEM blocks as a whole.
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    # user:password@ in URLs
    re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s\"']+(@)", re.IGNORECASE),
    # Authorization: Bearer …, Cookie: …, Coder-Session-Token: …
    re.compile(
        r"((?:authorization|proxy-authorization|cookie|set-cookie|coder-session-token|x-api-key)\\?[\"']?\s*[:=]\s*)"
        r"[^\r\n]+()",
        re.IGNORECASE,
    ),
    # name=value and "name": "value" where the name says it is secret
    re.compile(
        r"((?:\b|[_-])(?:[A-Za-z0-9_-]*(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|private[_-]?key|access[_-]?key"
        r"|credential)s?)\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"'\\,;&}\]]+()",
        re.IGNORECASE,
    ),
    # what providers' tokens look like
    re.compile(
        r"(\b)(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
        r"|A(?:KIA|SIA)[0-9A-Z]{16}|sk-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+|ya29\.[\w-]+|AIza[\w-]{30,})()"
    ),
)


class Censor:
    """Takes secrets out of texts. `known` are values that are secret wherever they stand."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = Redactor(known)

    def __call__(self, text: str) -> str:
        text = self._known.apply(text)
        for pattern in _PATTERNS:
            text = pattern.sub(lambda found: f"{found[1]}{MARK}{found[2] or ''}", text)
        return text


def known_secrets(environment: Mapping[str, str], token: str) -> set[str]:
    """What this process knows to be secret."""
    named = {value for name, value in environment.items() if name in ("CODER_AGENT_TOKEN", "CODER_AGENT_HEADER")}
    return {value for value in {token, *named, *secret_values(environment)} if value}


def variables(environment: Mapping[str, str], censor: Censor) -> str:
    """The agent's variables and those that change how programs reach the network; of others only their names."""
    shown, hidden = [], []
    secret = secret_values(environment)
    for name, value in sorted(environment.items()):
        if not _SHOWN.match(name):
            hidden.append(name)
        elif value in secret or name in ("CODER_AGENT_TOKEN", "CODER_AGENT_HEADER", "CODER_AGENT_HEADER_COMMAND"):
            shown.append(f"{name}={MARK if value else ''}")
        else:
            shown.append(f"{name}={censor(value)}")
    return "\n".join(shown) + "\n\nset, too: " + " ".join(hidden) + "\n"


_SHOWN: Final = re.compile(
    r"CODER_AGENT_\w+|CODER_PROC_\w+|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_(FILE|DIR)|TMPDIR|HOME|SHELL|USER|LANG|LC_\w+|TZ"
    r"|XDG_(STATE_HOME|RUNTIME_DIR)|NOTIFY_SOCKET|INVOCATION_ID|container",
    re.IGNORECASE,
)


def log_files(directory: Path) -> list[Path]:
    """The agent's own and its scripts' logs in `directory`, the newest first: plain files of this user only."""
    found = []
    for entry in os.scandir(directory):
        if re.fullmatch(r"coder-[\w.-]+\.log", entry.name):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                found.append((status.st_mtime, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)[:MAX_LOGS]]


def end_of(path: Path) -> str:
    """The last `MAX_LOG` bytes of a file, from the beginning of a line. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(size - MAX_LOG, 0))
        content = file.read(MAX_LOG)
    if size > MAX_LOG:
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", "replace")


def write(path: Path, texts: Mapping[str, str], logs: Iterable[Path], censor: Censor) -> list[str]:
    """Write the archive (0600, never over an existing file). The names of what is in it. Raises `OSError`.

    Every text and every log goes through `censor`. A log that cannot be read has its error in its place.
    """
    names = []
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:

        def add(name: str, text: str) -> None:
            content = censor(text).encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"workspace-agent-bundle/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
            names.append(name)

        for name, text in texts.items():
            add(name, text)
        for log in logs:
            try:
                add(f"logs/{log.name}", end_of(log))
            except OSError as error:
                add(f"logs/{log.name}.error", f"{error}\n")
    return names


def as_json(value: object) -> str:
    """A document for the archive."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
