"""Extra headers of every request to the control plane (agent-api.md §1.6, daemon.md §1.11).

Their values are often secrets of an access proxy: nothing here puts one into an error or a log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from agent.clock import Clock
from agent.process import Command
from agent.process.bounded import Job, StartError, run_command

COMMAND_LIMIT = 30.0
"""Seconds that the header command may take."""
MAX_OUTPUT = 64 * 1024

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_RESERVED = frozenset({"host", "connection", "upgrade", "content-length", "transfer-encoding"})

Headers = tuple[tuple[str, str], ...]


class HeaderError(ValueError):
    """An extra header, or the command that should print some, is unusable: the agent does not start."""


def parse_headers(items: Iterable[str]) -> Headers:
    """Name and value of each `key=value`. Raises `HeaderError` naming the item, never showing a value."""
    return tuple(_parse(item, f"item {number}") for number, item in enumerate(items, 1))


def _parse(item: str, where: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    name = name.strip()
    if not equals:
        # Nothing of it is shown: what has no "=" may be a value that lost its name.
        raise HeaderError(f'{where} has no "="; write it as key=value')
    if _NAME.fullmatch(name) is None:
        raise HeaderError(f"{where}: what stands before the first = is no name of a header")
    if name.lower() in _RESERVED or name.lower().startswith("sec-websocket-"):
        raise HeaderError(f"{where}: the header {name} belongs to the connection and cannot be set")
    if _CONTROL.search(value):
        raise HeaderError(f"{where}: the value of the header {name} holds control characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise HeaderError(f"{where}: the value of the header {name} is not UTF-8") from None  # its text has the value
    return name, value.strip(" \t")


async def run_header_command(command: str, url: str, environment: Mapping[str, str], clock: Clock) -> Headers:
    """The headers that `sh -c command` prints, one `key=value` a line. Raises `HeaderError`.

    It sees `CODER_URL`. What it writes to stderr is discarded, and it is killed with its children after 30 s.
    """
    job = Job(Command(("/bin/sh", "-c", command)), {**environment, "CODER_URL": url}, merge_stderr=False)
    try:
        outcome = await run_command(lambda: job, limit=COMMAND_LIMIT, max_output=MAX_OUTPUT, clock=clock)
    except StartError as error:
        raise HeaderError(f"CODER_AGENT_HEADER_COMMAND cannot be run: {error}") from error
    if outcome.timed_out:
        raise HeaderError(f"CODER_AGENT_HEADER_COMMAND did not end within {COMMAND_LIMIT:g} s")
    if outcome.status:
        raise HeaderError(f"CODER_AGENT_HEADER_COMMAND failed with exit status {outcome.status}")
    if outcome.printed > MAX_OUTPUT:
        raise HeaderError(f"CODER_AGENT_HEADER_COMMAND printed more than {MAX_OUTPUT} bytes")
    return parse_command_output(outcome.output)


def parse_command_output(output: bytes) -> Headers:
    """The headers in what a header command printed; lines may end with CR LF."""
    try:
        text = output.decode()
    except UnicodeDecodeError as error:
        raise HeaderError("the output of CODER_AGENT_HEADER_COMMAND is not UTF-8") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return tuple(
        _parse(line.removesuffix("\r"), f"line {number} of the output of CODER_AGENT_HEADER_COMMAND")
        for number, line in enumerate(lines, 1)
    )
