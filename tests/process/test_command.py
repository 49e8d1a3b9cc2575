"""Command lines of scripts."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.process import CommandError, build_command
from agent.process.command import ARGUMENT_LIMIT, split_words

pytestmark = [pytest.mark.spec("daemon", 31), pytest.mark.spec("terminal-ssh-http", 22)]


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("echo x", ["/bin/zsh"]),
        ("#!/bin/sh\necho x", ["/bin/sh"]),
        ("  \n\t#!/bin/bash -e\necho x", ["/bin/bash", "-e"]),
        ("#! /bin/sh -x \r\necho x", ["/bin/sh", "-x"]),
        ("#!'/opt/my shell/sh' \"a b\" c\\ d\n", ["/opt/my shell/sh", "a b", "c d"]),
        (" ", ["/bin/zsh"]),
    ],
)
def test_text_goes_whole_behind_c(text: str, before: list[str]) -> None:
    command = build_command(text, "/bin/zsh")
    assert list(command.argv) == [*before, "-c", text]
    assert command.temporary is None


def test_empty_text_is_a_login_shell() -> None:
    assert build_command("", "/bin/zsh").argv == ("/bin/zsh", "-l")


def test_interpreter_is_searched_in_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_command("#!tool -q", "/bin/sh").argv[:2] == (str(tool), "-q")
    with pytest.raises(CommandError, match=f'interpreter of the shebang "absent" was not found in PATH .{tmp_path}'):
        build_command("#!absent", "/bin/sh")


@pytest.mark.parametrize(
    ("text", "shell", "message"),
    [
        ("#!", "/bin/sh", "empty shebang"),
        ("#!   \necho", "/bin/sh", "empty shebang"),
        ("#!'' x", "/bin/sh", "empty shebang"),
        ("#!/bin/sh 'open", "/bin/sh", "unclosed '"),
        ('#!/bin/sh "open', "/bin/sh", 'unclosed "'),
        ('#!/bin/sh "open\\', "/bin/sh", 'unclosed "'),
        ("#!/bin/sh \\", "/bin/sh", "backslash"),
        ("a\0b", "/bin/sh", "NUL"),
        ("true", "", "no shell"),
    ],
)
def test_mistakes(text: str, shell: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        build_command(text, shell)


def test_too_long_for_an_argument(tmp_path: Path) -> None:
    text = "#" * (ARGUMENT_LIMIT - 1)
    assert build_command(text, "/bin/sh", str(tmp_path)).argv[1] == "-c"
    long = build_command(text + "é", "/bin/sh", str(tmp_path))
    shell, path = long.argv
    assert shell == "/bin/sh"
    assert Path(path).read_text() == text + "é"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    long.cleanup()
    long.cleanup()
    assert os.listdir(tmp_path) == []


def test_no_room_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"no file can be written in {tmp_path}/absent: No such file"):
        build_command("#" * ARGUMENT_LIMIT, "/bin/sh", str(tmp_path / "absent"))


def test_text_is_not_shown() -> None:
    assert "secret" not in repr(build_command("echo secret", "/bin/sh"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  a\tb  ", ["a", "b"]),
        ("a''b \"\" ''", ["ab", "", ""]),
        ('\'a\\b\' "\\$\\`\\"\\\\ \\x"', ["a\\b", '$`"\\ \\x']),
        ('a\\\nb "c\\\nd"', ["ab", "cd"]),
        ("\\\n", []),
        ("\\ ", [" "]),
        ("a#b #c", ["a#b", "#c"]),
    ],
)
def test_split_words(line: str, words: list[str]) -> None:
    assert split_words(line) == words


@given(st.lists(st.text(alphabet="ab '\"\\$\n#"), max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    assert split_words(shlex.join(words)) == words


@given(st.text(alphabet="ab '\"\\$\n"))
def test_any_line_gives_words_or_an_error(line: str) -> None:
    try:
        split_words(line)
    except CommandError:
        with pytest.raises(ValueError):
            shlex.split(line)


def test_shell_by_name() -> None:
    assert build_command("x", "sh").argv[0] == shutil.which("sh")
