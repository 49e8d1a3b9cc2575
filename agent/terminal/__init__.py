"""Terminals that clients come back to: the reconnecting PTY service of tailnet port 2 (terminal-ssh-http.md §1)."""

from agent.terminal.attachment import Stream
from agent.terminal.command import CommandContext
from agent.terminal.counters import ConnectionReports, Counters, Ending
from agent.terminal.service import TerminalService
from agent.terminal.session import Limits

__all__ = ["CommandContext", "ConnectionReports", "Counters", "Ending", "Limits", "Stream", "TerminalService"]
