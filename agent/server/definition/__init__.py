"""Agent definitions: what a person writes in YAML or JSON to get an agent."""

from __future__ import annotations

from agent.server.definition.model import AgentDefinition
from agent.server.definition.reader import DefinitionError, Mistake, read_definition
from agent.server.definition.warnings import warnings

__all__ = ["AgentDefinition", "DefinitionError", "Mistake", "read_definition", "warnings"]
