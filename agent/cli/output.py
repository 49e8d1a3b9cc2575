"""What the commands print: tables and colour for people at a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

_COLOURS = {
    "connected": "green",
    "ready": "green",
    "active": "green",
    "connecting": "yellow",
    "starting": "yellow",
    "shutting_down": "yellow",
    "start_timeout": "yellow",
    "disconnected": "red",
    "timeout": "red",
    "start_error": "red",
    "shutdown_error": "red",
    "shutdown_timeout": "red",
}


def print_json(value: Any) -> None:
    """One document, as the server's OpenAPI description has it."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns with headings; never cut off where the output is read by a program."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """One thing, a line for each of its fields; empty ones are left out."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value:
            click.echo(f"{click.style(name.ljust(width), bold=True)}  {click.style(value, fg=_COLOURS.get(value))}")


def ago(text: str | None, now: datetime | None = None) -> str:
    """An RFC 3339 time as people say it: `5m ago`; a dash where there is none."""
    if not text or text.startswith("0001-"):
        return "-"
    seconds = int(((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds())
    if seconds < 0:
        return f"in {_span(-seconds)}"
    return "now" if seconds < 1 else f"{_span(seconds)} ago"


def _span(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
