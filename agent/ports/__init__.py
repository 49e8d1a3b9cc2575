"""Which TCP ports programs of the workspace listen on, and word of changes (terminal-ssh-http.md §4.2, §6)."""

from agent.ports.scan import ListeningPort, ScanError, Scanner
from agent.ports.service import PortService

__all__ = ["ListeningPort", "PortService", "ScanError", "Scanner"]
