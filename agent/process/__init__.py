"""Command lines of scripts, process identity, path expansion. No event loop in here."""

from agent.process.command import Command, CommandError, build_command
from agent.process.expand import expand_env, expand_path, home_directory
from agent.process.identity import ProcessId

__all__ = ["Command", "CommandError", "ProcessId", "build_command", "expand_env", "expand_path", "home_directory"]
