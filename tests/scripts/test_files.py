"""Directories and log files of scripts."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from uuid import UUID

import pytest

from agent.scripts.files import ScriptDirectories, ScriptFileError, open_log


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def write(fd: int, data: bytes) -> None:
    os.write(fd, data)
    os.close(fd)


def test_log_is_truncated_per_run_and_kept_for_an_adopted_one(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b" / "x.log")
    write(open_log(path, truncate=True), b"a long first run\n")
    write(open_log(path, truncate=True), b"second\n")
    write(open_log(path, truncate=False), b"more\n")
    assert Path(path).read_bytes() == b"second\nmore\n"
    assert (mode(path), mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o600, 0o700, 0o700)


def test_readable_log_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old")
    path.chmod(0o644)
    os.close(open_log(str(path), truncate=True))
    assert mode(path) == 0o600
    assert path.read_text() == ""


def test_null_device_is_fine() -> None:
    write(open_log("/dev/null", truncate=True), b"x")


def test_what_is_no_log_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for name, message in [
        ("", "is a directory: choose another log_path"),
        ("link", "is a symbolic link"),
        ("target/x", "cannot be opened: Not a directory"),
        ("fifo", "cannot be opened|is not a regular file"),
        ("x" * 300, "cannot be opened: File name too long"),
        ("x\0y", "contains a NUL character"),
    ]:
        with pytest.raises(ScriptFileError, match=message) as caught:
            open_log(str(tmp_path / name), truncate=True)
        assert str(tmp_path) in str(caught.value)
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.spec("daemon", 30)
def test_data_directories(tmp_path: Path) -> None:
    directories = ScriptDirectories(tmp_path / "new")
    data = directories.make_data(UUID(int=1))
    assert data == tmp_path / "new" / "coder-script-data" / str(UUID(int=1))
    assert directories.bin == tmp_path / "new" / "coder-script-data" / "bin"
    assert mode(data) == mode(directories.bin) == mode(data.parent) == 0o700
    data.parent.chmod(0o777)
    directories.make_bin()
    assert mode(data.parent) == 0o700


def test_prepared_by_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = ScriptDirectories(tmp_path)
    directories.make_bin()
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(ScriptFileError, match=r"coder-script-data\" belongs to user"):
        directories.make_bin()


def test_link_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "coder-script-data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScriptFileError, match="is not a directory"):
        ScriptDirectories(tmp_path).make_bin()


def test_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScriptFileError, match="cannot be made: "):
        ScriptDirectories(tmp_path / "file").make_bin()
