"""The agent's HTTP API on port 4 of its tailnet address (terminal-ssh-http.md §4)."""

from agent.metrics import Metric
from agent.workspace_api.service import PORT, WorkspaceApi
from agent.workspace_api.views import PortScanError, Views

__all__ = ["PORT", "Metric", "PortScanError", "Views", "WorkspaceApi"]
