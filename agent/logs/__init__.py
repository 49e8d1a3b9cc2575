"""Script output on its way to the server: bytes → lines → sanitised, redacted records → spool on disk → batches."""

from agent.logs.redact import Redactor, secret_values
from agent.logs.service import Capture, LogCounters, LogService
from agent.logs.spool import SpoolLimits

__all__ = ["Capture", "LogCounters", "LogService", "Redactor", "SpoolLimits", "secret_values"]
