"""How the text of a script becomes a command line (daemon.md §4.6)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

ARGUMENT_LIMIT = 131072
"""Bytes that Linux allows one argument to have, the NUL at its end included (MAX_ARG_STRLEN)."""


class CommandError(Exception):
    """No command can be made of a script; the text says why and never quotes the script."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `argv[0]` is a path, absolute unless the script itself named a relative one."""

    argv: tuple[str, ...] = field(repr=False)  # it contains the script
    temporary: str | None = None
    """A private directory that holds the text of a script too long for an argument."""

    def cleanup(self) -> None:
        """Remove what was made for the command; call it when the command has ended. Does file I/O."""
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)


def build_command(text: str, shell: str, directory: str | None = None) -> Command:
    """The command line of a script; `shell` is the user's login shell.

    A text that is too long for an argument (Q20) goes to a file (0600) in a new private directory (0700) under
    `directory`, by default the system's for temporary files; this, and the search of an interpreter in the agent's
    `PATH`, is file I/O. Raises `CommandError`.
    """
    if "\0" in text:
        raise CommandError("the script contains a NUL character, which no command line can carry")
    if not text:
        return Command((_find(shell, "shell"), "-l"))
    trimmed = text.strip()
    if trimmed.startswith("#!"):
        words = split_words(trimmed.split("\n", 1)[0][2:].strip())
        if not words or not words[0]:
            raise CommandError("empty shebang: name an interpreter after #! or leave the line out")
        interpreter = [_find(words[0], "interpreter of the shebang"), *words[1:]]
    else:
        interpreter = [_find(shell, "shell")]
    if len(os.fsencode(text)) < ARGUMENT_LIMIT:
        return Command((*interpreter, "-c", text))
    temporary, path = _write_private(text, directory)
    return Command((*interpreter, path), temporary)


def split_words(line: str) -> list[str]:
    """The shell words of a line: quotes and backslashes as in a POSIX shell, nothing is expanded.

    Raises `CommandError` when a quote is not closed or nothing follows a backslash.
    """
    words: list[str] = []
    word: list[str] | None = None  # None between words: '' is a word, a blank is not
    characters = iter(line)
    for character in characters:
        if character in " \t\n":
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise CommandError("the shebang line ends in a backslash")
            if escaped != "\n":
                word = [*(word or []), escaped]
            continue
        word = word if word is not None else []
        if character == "'":
            word += _until("'", characters)
        elif character == '"':
            word += _until('"', characters, escapable='$`"\\\n')
        else:
            word.append(character)
    if word is not None:
        words.append("".join(word))
    return words


def _until(quote: str, characters: Iterator[str], escapable: str = "") -> list[str]:
    """What stands before the closing quote."""
    result: list[str] = []
    for character in characters:
        if character == quote:
            return result
        if character == "\\" and escapable:
            escaped = next(characters, None)
            if escaped is None:
                break
            if escaped == "\n":
                continue
            result += escaped if escaped in escapable else ("\\", escaped)
        else:
            result.append(character)
    raise CommandError(f"the shebang line has an unclosed {quote}")


def _find(program: str, role: str) -> str:
    """Where a program is. One with a slash in its name is taken as it is: it may be relative to the script's cwd."""
    if "/" in program:
        return program
    if not program:
        raise CommandError(f"there is no {role} to run the script with")
    if found := shutil.which(program):
        return os.path.abspath(found)
    raise CommandError(f'{role} "{program}" was not found in PATH ({os.environ.get("PATH", "")})')


def _write_private(text: str, directory: str | None) -> tuple[str, str]:
    """A new directory for the owner alone, and the file in it that holds `text`."""
    temporary: str | None = None
    try:
        temporary = tempfile.mkdtemp(prefix="script-", dir=directory)
        path = os.path.join(temporary, "script")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.fsencode(text))
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        where = directory or tempfile.gettempdir()
        raise CommandError(
            f"the script is too long for a command line, and no file can be written in {where}: {error.strerror}"
        ) from error
    return temporary, path
