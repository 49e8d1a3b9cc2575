"""`workspace-agent uninstall`: beside `install`, whose options it shares."""

from __future__ import annotations

from agent.cli.install import uninstall

__all__ = ["uninstall"]
