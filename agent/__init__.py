"""The workspace agent and its embedded control plane."""

__version__ = "0.1.0"
