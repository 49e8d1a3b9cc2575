"""`workspace-agent config-ssh`: our section of the user's ssh configuration."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from agent.cli import openssh
from agent.cli.errors import CliError

BEGIN: Final = "# ---- workspace-agent: begin ----"
END: Final = "# ---- workspace-agent: end ----"
_SUFFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(\.[A-Za-z0-9][A-Za-z0-9-]*)*", re.ASCII)


@click.command("config-ssh")
@click.option(
    "--ssh-config-file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("~/.ssh/config"),
    show_default=True,
    help="The configuration to change.",
)
@click.option("--suffix", default="agent", show_default=True, help="The agent NAME becomes the host NAME.SUFFIX.")
@click.option("--remove", is_flag=True, help="Take our section out again.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def config_ssh(file: Path, suffix: str, remove: bool, dry_run: bool, yes: bool) -> None:
    """Let ssh, and all that uses it, find agents by their names.

    Writes one section into the ssh configuration, for all agents that there are or will be. What else is in the file
    stays as it is.
    """
    if _SUFFIX.fullmatch(suffix) is None:
        raise click.UsageError(f"{suffix!r} cannot end a host name; use letters, digits, hyphens and dots")
    file = Path(os.path.realpath(file.expanduser()))  # a link stays a link
    before = _read(file)
    try:
        after = changed(before, "" if remove else section(suffix))
    except ValueError as error:
        raise CliError(f"{file}: {error}") from error
    if after == before:
        click.echo(f"{file} needs no change")
        return
    _preview(file, before, after)
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise CliError("nobody can be asked here; say --yes to change the file")
        click.confirm(f"Change {file}?", default=True, abort=True)
    if _read(file) != before:
        raise CliError(f"{file} was changed meanwhile; try again")
    _write(file, after)
    click.echo(f"changed {file}")
    if not remove:
        click.echo(f"\nNow, for example, with the name of an agent:\n\n  ssh NAME.{suffix}")


def section(suffix: str) -> str:
    """What stands in the file."""
    lines = [BEGIN, "# Written by workspace-agent config-ssh, which also removes it. Changes in here are lost."]
    lines.append(f"Host *.{suffix}")
    lines += [f"    {name} {value}" for name, value in openssh.options("--suffix", suffix)]
    return "\n".join([*lines, END, ""])


def changed(text: str, wanted: str) -> str:
    """`text` with `wanted` as our section: where it was, else at the end. Empty: without one.

    Raises ValueError when the marks of the section are not where they belong.
    """
    lines = text.splitlines(keepends=True)
    begins, ends = ([at for at, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END))
    if not begins and not ends:
        if not wanted:
            return text
        separator = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        return text + separator + wanted
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise ValueError(f'our section must have one line "{BEGIN}" and after it one line "{END}"; remove what is left')
    head, tail = lines[: begins[0]], lines[ends[0] + 1 :]
    if not wanted and head and not tail and not head[-1].strip():
        head.pop()  # the empty line that came with the section
    return "".join([*head, wanted, *tail])


def _read(file: Path) -> str:
    """Byte for byte, whatever its encoding and its ends of lines; empty where there is none."""
    try:
        return file.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error


def _write(file: Path, text: str) -> None:
    """All or nothing; the file keeps its mode."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # made 0600
        try:
            with open(descriptor, "wb") as handle:
                handle.write(text.encode(errors="surrogateescape"))
                if file.exists():
                    found = file.stat()
                    os.fchmod(handle.fileno(), found.st_mode & 0o7777)
                    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(handle.fileno(), found.st_uid, found.st_gid)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror}") from error


def _preview(file: Path, before: str, after: str) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), str(file), lineterm=""):
        shown = line.encode(errors="surrogateescape").decode(errors="replace")
        click.echo(click.style(shown, fg=colours.get(line[:1])))
