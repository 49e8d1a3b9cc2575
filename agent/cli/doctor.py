"""`workspace-agent doctor`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.command import json_option, run
from agent.cli.output import print_json

if TYPE_CHECKING:
    from agent.doctor import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": None}


@click.command()
@click.option("--url", help="The control plane [default: $CODER_AGENT_URL].")
@click.option("--token-file", help="File with the agent's token [default: $CODER_AGENT_TOKEN_FILE].")
@json_option
def doctor(url: str | None, token_file: str | None, as_json: bool) -> None:
    """Find out what keeps an agent on this machine from working.

    Looks at the machine, at each step of the way to the control plane, and at how clients will get here. A running
    agent is not disturbed. Ends with 1 when something failed; warnings alone end it with 0.
    """
    found: list[Finding] = []
    run(examine(url, token_file, found, quiet=as_json))
    if as_json:
        print_json([to_json(finding) for finding in found])
    sys.exit(1 if any(finding.outcome.value == "failed" for finding in found) else 0)


def to_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "name": finding.name,
        "outcome": finding.outcome.value,
        "saw": finding.saw,
        "advice": finding.advice,
    }


async def examine(url: str | None, token_file: str | None, found: list[Finding], *, quiet: bool) -> None:
    """Add all findings to `found`, and show each when there is it unless `quiet`."""
    from agent.clock import SystemClock
    from agent.daemon.config import ConfigError, parse_config
    from agent.doctor.finding import Finding, Outcome, Subject
    from agent.doctor.run import examine as examine_subject

    def take(finding: Finding) -> None:
        found.append(finding)
        if not quiet:
            show(finding)

    flags = {"url": url, "token_file": token_file}
    try:
        config = parse_config({name: [text] for name, text in flags.items() if text}, os.environ)
    except ConfigError as error:
        advice = "set the variables as for the agent, or run this where the agent runs"
        take(Finding("configuration", Outcome.FAILED, "; ".join(error.problems), advice))
        return
    async for finding in examine_subject(Subject(config, os.environ, SystemClock())):
        take(finding)


def show(finding: Finding) -> None:
    """A finding for people."""
    outcome = click.style(finding.outcome.value.ljust(8), fg=_COLOURS[finding.outcome.value])
    click.echo(f"{outcome} {finding.name}: {finding.saw}")
    if finding.advice:
        click.echo(f"         → {finding.advice}")
