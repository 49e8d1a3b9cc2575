"""Expansion of variables and of paths in manifest values (daemon.md §2.3), the way Go programs do it, not a shell."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping

# In order: ${anything}, an unclosed ${, a special one-character name, a plain name. A `$` before anything else stays.
_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|\{|([*#$@!?\-0-9])|([A-Za-z_][A-Za-z0-9_]*))")


def expand_env(text: str, environment: Mapping[str, str]) -> str:
    """`text` with `$NAME` and `${NAME}` replaced; what is not in `environment` becomes empty.

    There is no default syntax: `${A:-b}` looks up a variable literally called `A:-b`.
    """
    return _REFERENCE.sub(lambda found: environment.get(found[1] or found[2] or found[3] or "", ""), text)


def expand_path(path: str, environment: Mapping[str, str], relative_to: str | None = None) -> str:
    """The absolute form of a path of the manifest; empty stays empty.

    A leading `~` is the home directory (`~name` is no user lookup). A relative path is one under `relative_to`, by
    default the home directory. A path that is absolute after the expansion of variables is not cleaned.
    """
    if not path:
        return ""
    if path.startswith("~"):
        path = _join(home_directory(environment), path[1:])
    path = expand_env(path, environment)
    if path.startswith("/"):
        return path
    return _join(relative_to or home_directory(environment), path)


def home_directory(environment: Mapping[str, str]) -> str:
    """`$HOME` if it is set and not empty, else what the user database says; `/` where it knows no such user."""
    if home := environment.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir or "/"
    except KeyError:
        return "/"


def _join(base: str, rest: str) -> str:
    """Both as one clean path: no `.`, `..` or doubled slashes."""
    joined = os.path.normpath(f"{base}/{rest}")
    # POSIX gives a path that begins with exactly two slashes a meaning of its own, which normpath keeps.
    return joined[1:] if joined.startswith("//") else joined
