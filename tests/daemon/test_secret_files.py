"""Secrets as files (daemon.md §2.5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.api.manifest import Secret
from agent.daemon.secret_files import write_secret_files

pytestmark = pytest.mark.spec("daemon", 19)


def secret(path: str, value: bytes = b"hunter2-hunter2") -> Secret:
    return Secret("", path, value)


def mode(path: Path) -> int:
    return os.stat(path).st_mode & 0o777


def test_new_files_and_their_parents_are_private(tmp_path: Path) -> None:
    binary = bytes(range(256))
    write_secret_files([secret(f"{tmp_path}/a/b/key", binary), secret("~/c/token")], str(tmp_path))
    assert (tmp_path / "a/b/key").read_bytes() == binary
    assert (tmp_path / "c/token").read_bytes() == b"hunter2-hunter2"
    assert mode(tmp_path / "a/b/key") == mode(tmp_path / "c/token") == 0o600
    assert mode(tmp_path / "a") == mode(tmp_path / "a/b") == mode(tmp_path / "c") == 0o700


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("a longer content than the new one has")
    path.chmod(0o644)
    write_secret_files([secret(str(path), b"new")], "")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o644


def test_the_later_of_two_on_one_path_wins_and_is_told(tmp_path: Path) -> None:
    with capture_logs() as logs:
        write_secret_files([secret(f"{tmp_path}/key", b"one"), secret(f"{tmp_path}/x/../key", b"two")], "")
    assert (tmp_path / "key").read_bytes() == b"two"
    assert [entry["path"] for entry in logs] == [f"{tmp_path}/key"]


def test_without_a_home_only_that_file_is_left_out(tmp_path: Path) -> None:
    with capture_logs() as logs:
        write_secret_files([secret("~/key"), secret(f"{tmp_path}/key")], "")
    assert (tmp_path / "key").exists()
    assert "home directory is not known" in logs[0]["event"]


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "key").symlink_to(tmp_path / "victim")
    with capture_logs() as logs:
        write_secret_files([secret(f"{tmp_path}/key")], "")
    assert (tmp_path / "victim").read_text() == "precious"
    assert len(logs) == 1


def test_errors_are_warnings_without_the_value_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    paths = [f"{tmp_path}/file/key", f"{tmp_path}/directory", f"{tmp_path}/nul\0key", f"{tmp_path}/good"]
    with capture_logs() as logs:
        write_secret_files([secret(path) for path in paths], "")
    assert len(logs) == 3
    assert "hunter2" not in str(logs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file", "good"]
