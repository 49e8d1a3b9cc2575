"""What this program says about its version (daemon.md §1.10)."""

from __future__ import annotations

from agent import __version__

COMPATIBLE = "v2.33.0"
"""The release of the Go agent that this one stands for; a server's page compares it with the server's own version."""

VERSION = f"{COMPATIBLE}+py.{__version__}"
"""What UpdateStartup and `--version` report. It satisfies Go's semver check, or the server would refuse every start."""


def version_text() -> str:
    """The lines of `--version`. Bootstrap scripts look for `Coder` in the first one."""
    return f"Coder {VERSION}\nworkspace-agent {__version__}"
