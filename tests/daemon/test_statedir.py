"""The state directory is private, and belongs to one process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import UUID

import pytest

from agent.daemon.statedir import StateDirectoryError, open_state_directory, remove_old

ID, OTHER = UUID(int=1), UUID(int=2)


def test_it_is_made_private(tmp_path: Path) -> None:
    directory = open_state_directory(tmp_path / "deep" / "state", ID)
    assert directory.path == tmp_path / "deep" / "state" / str(ID)
    assert os.stat(directory.path).st_mode & 0o777 == 0o700
    assert os.stat(directory.path / "lock").st_mode & 0o777 == 0o600
    directory.close()


def test_an_open_one_is_refused_to_others_until_closed(tmp_path: Path) -> None:
    directory = open_state_directory(tmp_path, ID)
    with pytest.raises(StateDirectoryError, match="another agent process"):
        open_state_directory(tmp_path, ID)
    directory.close()
    open_state_directory(tmp_path, ID).close()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / str(ID)).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateDirectoryError, match=r"symbolic link.*--state-dir"):
        open_state_directory(tmp_path / "state", ID)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_foreign_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / str(ID)).mkdir()
    os.chown(tmp_path / str(ID), 12345, 12345)
    with pytest.raises(StateDirectoryError, match="belongs to user 12345"):
        open_state_directory(tmp_path, ID)


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateDirectoryError, match="state"):
        open_state_directory(tmp_path / "state", ID)


def test_old_directories_go_unless_someone_uses_them(tmp_path: Path) -> None:
    ids = [UUID(int=number) for number in range(1, 5)]
    kept, old, locked, young = ids
    directories = {agent: open_state_directory(tmp_path, agent) for agent in ids}
    (directories[old].path / "spool").mkdir()
    (directories[old].path / "spool" / "1").write_text("x")
    (tmp_path / "notes").mkdir()
    emptied = tmp_path / str(UUID(int=5))  # somebody removed the files under a running agent
    (emptied / "spool").mkdir(parents=True)
    for agent in (kept, old, young):
        directories[agent].close()
    ages_ago = time.time() - 8 * 24 * 3600
    for agent in (kept, old, locked):
        os.utime(directories[agent].path / "lock", (ages_ago, ages_ago))
    assert remove_old(tmp_path, kept) == [directories[old].path]
    os.utime(emptied, (ages_ago, ages_ago))
    assert remove_old(tmp_path, kept) == [emptied]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes", *map(str, (kept, locked, young))])
    directories[locked].close()
