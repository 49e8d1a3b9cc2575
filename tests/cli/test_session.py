from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.cli import session
from agent.cli.errors import CliError
from agent.cli.session import Session


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CODER_URL", "CODER_SESSION_TOKEN", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_what_login_stored_is_loaded(home: Path) -> None:
    file = session.store(Session("http://h", "secret"))
    assert file == home / ".config/workspace-agent/session.json"
    assert session.load() == Session("http://h", "secret")


def test_only_this_user_can_read_it() -> None:
    file = session.store(Session("http://h", "old"))
    session.store(Session("http://h", "new"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["session.json"]


def test_the_configuration_directory_may_be_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    assert session.store(Session("http://h", "t")).is_relative_to(home / "elsewhere")


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    session.store(Session("http://stored", "stored"))
    monkeypatch.setenv("CODER_URL", "http://given/")
    monkeypatch.setenv("CODER_SESSION_TOKEN", "given")
    assert session.load() == Session("http://given", "given")


def test_without_a_session_it_says_what_to_run() -> None:
    with pytest.raises(CliError, match="workspace-agent login URL"):
        session.load()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": "http://h"}', "\x00"])
def test_a_damaged_file_is_named(content: str) -> None:
    file = session.store(Session("http://h", "t"))
    file.write_text(content)
    with pytest.raises(CliError, match=f"{file} is damaged"):
        session.load()


def test_a_file_that_cannot_be_written_is_named(home: Path) -> None:
    (home / ".config").write_text("in the way")
    with pytest.raises(CliError, match=r"session\.json"):
        session.store(Session("http://h", "t"))


def test_the_token_is_in_no_representation() -> None:
    assert "secret" not in repr(Session("http://h", "secret"))
