"""What a check says."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarl import URL

if TYPE_CHECKING:
    from agent.clock import Clock
    from agent.daemon.config import AgentConfig


class Outcome(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could, or may soon stop to."""
    FAILED = "failed"
    """An agent here cannot do its work."""
    SKIPPED = "skipped"
    """It makes no sense here, or what it builds on failed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` says what was looked at, `saw` what was found, `advice` what to do; that is empty where all is well."""

    name: str
    outcome: Outcome
    saw: str
    advice: str = ""


def ok(name: str, saw: str) -> Finding:
    """All is well."""
    return Finding(name, Outcome.OK, saw)


def warning(name: str, saw: str, advice: str) -> Finding:
    """See `Outcome`."""
    return Finding(name, Outcome.WARNING, saw, advice)


def failed(name: str, saw: str, advice: str) -> Finding:
    """See `Outcome`."""
    return Finding(name, Outcome.FAILED, saw, advice)


def skipped(name: str, why: str) -> Finding:
    """See `Outcome`."""
    return Finding(name, Outcome.SKIPPED, why)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at: the agent as it is configured in this environment."""

    config: AgentConfig
    environment: Mapping[str, str]
    clock: Clock

    @property
    def url(self) -> URL:
        """The control plane."""
        return URL(self.config.url)
