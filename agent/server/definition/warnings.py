"""What is odd about a definition, but the agent's business to refuse (daemon.md §4.4)."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator

from agent.server.definition.model import AgentDefinition

_ZONE_PREFIXES = ("CRON_TZ=", "TZ=")


def warnings(definition: AgentDefinition) -> list[str]:
    """One line each; empty when there is nothing to say. Looks for time zones in files: use a thread."""
    return [
        f"scripts[{index}].cron: {text}"
        for index, script in enumerate(definition.scripts)
        if script.cron
        for text in _cron(script.cron)
    ]


def _cron(line: str) -> Iterator[str]:
    fields = line.split()
    if fields and fields[0].startswith(_ZONE_PREFIXES):
        name = fields.pop(0).partition("=")[2]
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            yield f"time zone {name!r} is not known; the agent will not run this script by schedule"
    if fields and fields[0].startswith("@"):
        return
    if not 5 <= len(fields) <= 6:
        yield f"expected 5 to 6 fields (seconds first), found {len(fields)}; the agent will not run this script"
    elif len(fields) == 5:
        yield "has 5 fields, so that the first one counts seconds, not minutes, and the last one months"
