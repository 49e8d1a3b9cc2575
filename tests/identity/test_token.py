from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.identity import FixedToken, IdentityError, token_source

TOKEN = "9c2b7c1e-7d3a-4c56-9a53-0f8a2f1d1c11"


async def obtain(path: Path) -> str:
    return await token_source("", str(path), "").obtain()


@pytest.mark.spec("daemon", 2)
async def test_a_token_file_is_trimmed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f" \t{TOKEN}\r\n\n")
    assert await obtain(file) == TOKEN


@pytest.mark.spec("daemon", 2)
async def test_a_token_wins_over_a_file_and_a_file_over_a_credential(tmp_path: Path) -> None:
    (tmp_path / "agent-token").write_text("from-systemd")
    (tmp_path / "file").write_text("from-file")
    file, directory = str(tmp_path / "file"), str(tmp_path)
    assert await token_source("given", file, directory).obtain() == "given"
    assert await token_source("", file, directory).obtain() == "from-file"
    assert await token_source("", "", directory).obtain() == "from-systemd"


async def test_the_file_is_read_again_before_every_dial(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    source = token_source("", str(file), "")
    file.write_text("second")
    assert await source.obtain() == "second"


async def test_a_rotated_kubernetes_secret_is_seen(tmp_path: Path) -> None:
    """Its file is a link into `..data`, itself a link to a directory that is swapped."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "token").symlink_to("..data/token")
    source = token_source("", str(tmp_path / "token"), "")
    assert await source.obtain() == "one"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "..data")
    assert await source.obtain() == "two"


async def test_a_file_that_goes_away_fails_the_attempt_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    source = token_source("", str(file), "")
    file.unlink()
    with pytest.raises(IdentityError, match="No such file"):
        await source.obtain()
    file.write_text(TOKEN)
    assert await source.obtain() == TOKEN


def refused(path: Path) -> str:
    with pytest.raises(IdentityError) as caught:
        token_source("", str(path), "")
    text = str(caught.value)
    assert text.startswith(f'read token file "{path}": ')
    assert "CODER_AGENT_TOKEN_FILE must be set for token auth" in text
    return text


@pytest.mark.spec("daemon", 1)
def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path / "none")


@pytest.mark.spec("daemon", 1)
def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is unreadable to root, who may well run the tests.
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "Permission denied" in refused(tmp_path / "token")


def test_a_directory(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    assert "it is empty" in refused(tmp_path / "token")


def test_a_huge_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"x" * 1_000_000)
    assert "more than 16384 bytes" in refused(tmp_path / "token")


def test_a_binary_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(bytes(range(128, 256)))
    assert "not plain text" in refused(tmp_path / "token")


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    assert "not a regular file" in refused(tmp_path / "token")


def test_several_words(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("CODER_AGENT_TOKEN=a b")
    with pytest.raises(IdentityError, match="one word"):
        token_source("", str(tmp_path / "token"), "")


def test_a_missing_systemd_credential(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r'systemd credential ".*/agent-token": No such file.*LoadCredential='):
        token_source("", "", str(tmp_path))


def test_nothing_given() -> None:
    with pytest.raises(IdentityError, match="Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set"):
        token_source("", "", "")


def test_descriptors_are_closed(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(TOKEN)
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "good", tmp_path / "fifo", tmp_path):
        try:
            token_source("", str(path), "")
        except IdentityError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


@given(st.text())
async def test_a_token_fits_a_header_or_is_refused(text: str) -> None:
    try:
        token = await FixedToken(text).obtain()
    except IdentityError:
        return
    assert token == text.strip()
    assert all(" " < character < "\x7f" for character in token)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_a_token_of_blanks_is_none(text: str) -> None:
    with pytest.raises(IdentityError, match="CODER_AGENT_TOKEN: it is empty"):
        FixedToken(text)


def test_a_refused_token_is_not_shown() -> None:
    with pytest.raises(IdentityError) as caught:
        FixedToken("hunter2 hunter2")
    assert "CODER_AGENT_TOKEN" in str(caught.value)
    assert "hunter2" not in str(caught.value)
