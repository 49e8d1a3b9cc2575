"""An installation is there or it is not; over another one it is an upgrade."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.launch.systemd import UNIT, Installer, InstallError, drop_in, system_place, user_place


class Systemctl:
    """Writes down what it is told; fails at the command that is named."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __call__(self, command: Sequence[str], limit: float | None) -> None:
        assert command[0] == "systemctl"
        self.calls.append(" ".join(command[1:]))
        if self.fails and self.fails in command:
            raise InstallError(f"{self.fails} failed")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


TEXT = drop_in(
    executable="/opt/wa/bin/workspace-agent", url="https://example.com", token=Path("/t"), auth="token", user="ann"
)


def test_files_are_written_and_the_unit_is_started_without_waiting(tmp_path: Path) -> None:
    systemctl = Systemctl()
    place = system_place(tmp_path)
    Installer(place, systemctl).install(unit_drop_in=TEXT, token="secret")
    assert systemctl.calls == ["daemon-reload", f"enable {UNIT}", f"start --no-block {UNIT}"]
    assert place.token.read_text() == "secret"
    assert os.stat(place.token).st_mode & 0o777 == 0o600
    assert "secret" not in place.unit.read_text() + place.drop_in.read_text()
    assert 'ExecStart="/opt/wa/bin/workspace-agent" agent' in place.drop_in.read_text()


def test_the_second_time_the_running_agent_makes_way(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    Installer(place, Systemctl()).install(unit_drop_in=TEXT, token="secret")
    systemctl = Systemctl()
    Installer(place, systemctl).install(unit_drop_in=TEXT, token="newer")
    assert systemctl.calls[-1] == f"reload-or-restart --no-block {UNIT}"
    assert place.token.read_text() == "newer"


@pytest.mark.parametrize("fails", ["daemon-reload", "enable", "start"])
def test_what_fails_leaves_nothing(tmp_path: Path, fails: str) -> None:
    with pytest.raises(InstallError, match=f"{fails} failed"):
        Installer(system_place(tmp_path), Systemctl(fails)).install(unit_drop_in=TEXT, token="secret")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["daemon-reload", "enable", "reload-or-restart"])
def test_upgrade_that_fails_leaves_the_former_one(tmp_path: Path, fails: str) -> None:
    place = system_place(tmp_path)
    Installer(place, Systemctl()).install(unit_drop_in=TEXT, token="secret")
    before = files(tmp_path)
    systemctl = Systemctl(fails)
    with pytest.raises(InstallError):
        Installer(place, systemctl).install(unit_drop_in=TEXT.replace("ann", "bob"), token="newer")
    assert files(tmp_path) == before
    assert f"disable {UNIT}" not in systemctl.calls


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    place.unit.parent.parent.mkdir(parents=True)
    place.unit.parent.write_text("in the way")
    with pytest.raises(InstallError, match=str(place.unit.parent)):
        Installer(place, Systemctl()).install(unit_drop_in=TEXT, token="secret")
    assert files(tmp_path) == {"etc/systemd/system": b"in the way"}


def test_uninstall_stops_first_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    place = system_place(tmp_path)
    systemctl = Systemctl()
    installer = Installer(place, systemctl)
    assert not installer.uninstall()
    installer.install(unit_drop_in=TEXT, token="secret")
    (place.config / "agent.env").write_text("CODER_AGENT_NAME=main\n")
    systemctl.calls.clear()
    assert installer.uninstall()
    assert systemctl.calls == [f"disable {UNIT}", f"stop {UNIT}", "daemon-reload"]
    assert list(files(tmp_path)) == ["etc/workspace-agent/agent.env"]
    assert not installer.uninstall()


@pytest.mark.parametrize("url", ["https://a\nExecStart=/bin/evil", 'https://a"', "https://a\\", "https://a%n"])
def test_text_that_would_become_another_directive_is_refused(url: str) -> None:
    with pytest.raises(InstallError, match="URL"):
        drop_in(executable="/x", url=url, token=Path("/t"), auth="token", user=None)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("for_user", [False, True])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, for_user: bool) -> None:
    place = user_place(tmp_path) if for_user else system_place(tmp_path)
    text = drop_in(executable="/bin/true", url="https://example.com", token=place.token, auth="token", user=None)
    Installer(place, lambda command, limit: None).install(unit_drop_in=text, token="secret")
    manager = "--user" if for_user else "--system"
    done = subprocess.run(
        ["systemd-analyze", manager, "verify", "--man=no", "--recursive-errors=no", str(place.unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
