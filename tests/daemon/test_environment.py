"""Precedence of variables, shell and working directory of commands (daemon.md §2.4)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.api.manifest import Manifest, Secret, from_proto
from agent.daemon.environment import CommandEnvironment, NoManifestError, NoShellError, login_shell
from agent.testing.control_plane import simple_manifest

PASSWD = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/usr/bin/fish\nalice:x:1:1::/:/bin/second\n"
BIN = Path("/data/coder-script-data/bin")


def manifest(environment: dict[str, str] | None = None, proxy: str = "") -> Manifest:
    converted, _ = from_proto(simple_manifest())
    return dataclasses.replace(converted, environment=environment or {}, vscode_proxy_uri=proxy)


class Fixture:
    def __init__(self, tmp_path: Path) -> None:
        self.passwd = tmp_path / "passwd"
        self.passwd.write_text(PASSWD)
        self.process = {"PATH": "/usr/bin:/agent", "HOME": "/home/alice", "BOTH": "process", "CODER": "shadowed"}

    def make(self, executable: str = "/agent/coder") -> CommandEnvironment:
        return CommandEnvironment(
            process=self.process,
            executable=executable,
            bin_dir=BIN,
            token=lambda: "the-token",
            passwd=self.passwd,
            user="alice",
        )


@pytest.fixture
def fixture(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_before_the_first_manifest_nothing_can_run(fixture: Fixture) -> None:
    with pytest.raises(NoManifestError):
        fixture.make().environment()


@pytest.mark.spec("daemon", 17)
def test_predefined_names(fixture: Fixture) -> None:
    context = fixture.make()
    context.update(manifest(), (), "")
    assert context.environment() == {
        "CODER": "true",
        "CODER_WORKSPACE_NAME": "dev",
        "CODER_WORKSPACE_AGENT_NAME": "main",
        "CODER_WORKSPACE_OWNER_NAME": "alice",
        "CODER_WORKSPACE_ID": "00000000-0000-0000-0000-000000000007",
        "CODER_AGENT_TOKEN": "the-token",
        "GIT_SSH_COMMAND": "/agent/coder gitssh --",
        "CS_DISABLE_GETTING_STARTED_OVERRIDE": "true",
        "PATH": "/data/coder-script-data/bin:/usr/bin:/agent",
        "HOME": "/home/alice",
        "BOTH": "process",
        "USER": "alice",
        "LOGNAME": "alice",
        "SHELL": "/usr/bin/fish",
        "GIT_ASKPASS": "/agent/coder",
        "SSH_CLIENT": "0.0.0.0 0 0",
        "SSH_CONNECTION": "0.0.0.0 0 0.0.0.0 0",
    }


@pytest.mark.parametrize(
    ("executable", "command"), [("/a b/coder", "'/a b/coder' gitssh --"), ("", None)], ids=["with a blank", "none"]
)
def test_git_is_pointed_only_at_a_program_that_it_can_call(
    fixture: Fixture, executable: str, command: str | None
) -> None:
    context = fixture.make(executable=executable)
    context.update(manifest(), (), "")
    environment = context.environment()
    assert environment.get("GIT_SSH_COMMAND") == command
    assert environment.get("GIT_ASKPASS") == (executable or None)


LAYERS = ["requested", "process", "predefined", "manifest", "secret", "agent"]


@pytest.mark.spec("terminal-ssh-http", 20)
@pytest.mark.spec("daemon", 17)
@pytest.mark.parametrize(
    ("name", "layers", "winner"),
    [
        ("NEW", ["requested"], "requested"),
        ("BOTH", ["requested", "process"], "process"),
        ("CODER", ["requested", "process", "predefined"], "true"),
        ("USER", ["requested"], "requested"),
        ("BOTH", ["requested", "process", "manifest"], "manifest"),
        ("CODER_AGENT_TOKEN", ["predefined", "manifest"], "manifest"),
        ("GIT_SSH_COMMAND", ["predefined", "manifest", "secret"], "secret"),
        ("GIT_ASKPASS", ["requested", "process", "manifest", "secret", "agent"], "/agent/coder"),
        ("SSH_CLIENT", ["requested", "process", "manifest", "secret"], "0.0.0.0 0 0"),
    ],
)
def test_precedence(fixture: Fixture, name: str, layers: list[str], winner: str) -> None:
    if "process" in layers:
        fixture.process[name] = "process"
    context = fixture.make()
    secrets = [Secret(name, "", b"secret")] if "secret" in layers else []
    context.update(manifest({name: "manifest"} if "manifest" in layers else {}), secrets, "")
    assert context.environment({name: "requested"} if "requested" in layers else {})[name] == winner


@pytest.mark.spec("daemon", 17)
def test_values_of_the_manifest_are_expanded_from_the_process_alone_and_secrets_are_not(fixture: Fixture) -> None:
    context = fixture.make()
    context.update(
        manifest({"PATH": "/opt/bin:$PATH", "A": "x", "B": "$A$CODER_WORKSPACE_NAME.", "C": "${CODER}"}),
        [Secret("S", "", b"$PATH\xff")],
        "",
    )
    environment = context.environment()
    assert environment["PATH"] == f"{BIN}:/opt/bin:/usr/bin:/agent"
    assert environment["B"] == "."
    assert environment["C"] == "shadowed"
    assert environment["S"].encode("utf-8", "surrogateescape") == b"$PATH\xff"


@pytest.mark.spec("daemon", 18)
def test_the_proxy_address_is_there_only_when_given(fixture: Fixture) -> None:
    context = fixture.make()
    context.update(manifest(), (), "")
    assert "VSCODE_PROXY_URI" not in context.environment()
    context.update(manifest(proxy="https://{{port}}--main.example.com"), (), "")
    assert context.environment()["VSCODE_PROXY_URI"] == "https://{{port}}--main.example.com"


def test_only_the_exact_traceback_setting_is_left_out(fixture: Fixture) -> None:
    for value, there in (("none", False), ("all", True)):
        fixture.process["GOTRACEBACK"] = value
        context = fixture.make()
        context.update(manifest(), (), "")
        assert ("GOTRACEBACK" in context.environment()) is there


def test_an_impossible_variable_is_left_out_and_told(fixture: Fixture) -> None:
    context = fixture.make()
    with capture_logs() as logs:
        context.update(manifest({"": "a", "A=B": "c", "GOOD": "d"}), [Secret("NUL", "", b"a\0secretvalue")], "")
    environment = context.environment()
    assert environment["GOOD"] == "d"
    assert not {"", "A=B", "NUL"} & environment.keys()
    assert len(logs) == 3
    assert "secretvalue" not in str(logs)


@pytest.mark.spec("daemon", 20)
def test_a_later_manifest_replaces_everything(fixture: Fixture) -> None:
    context = fixture.make()
    context.update(manifest({"OLD": "1"}), [Secret("S", "", b"1")], "")
    context.update(manifest({"NEW": "2"}), [], "")
    environment = context.environment()
    assert environment["NEW"] == "2"
    assert "OLD" not in environment
    assert "S" not in environment


@pytest.mark.spec("terminal-ssh-http", 21)
@pytest.mark.spec("daemon", 16)
def test_a_directory_that_is_none_means_home_and_is_not_made(fixture: Fixture, tmp_path: Path) -> None:
    context = fixture.make()
    wanted = tmp_path / "project"
    context.update(manifest(), (), str(wanted))
    assert context.directory() == "/home/alice"
    assert not wanted.exists()
    wanted.write_text("a file")
    assert context.directory() == "/home/alice"
    wanted.unlink()
    wanted.mkdir()
    assert context.directory() == str(wanted)


def test_shell(fixture: Fixture, tmp_path: Path) -> None:
    assert login_shell("alice", {}, fixture.passwd) == "/usr/bin/fish"
    assert login_shell("bob", {"SHELL": "/bin/zsh"}, fixture.passwd) == "/bin/zsh"
    assert login_shell("alice", {"SHELL": "/bin/zsh"}, tmp_path / "missing") == "/bin/zsh"
    with pytest.raises(NoShellError, match="user bob has no shell"):
        login_shell("bob", {}, fixture.passwd)


@given(st.text(), st.sampled_from(["alice", "bob"]))
def test_any_user_database_gives_a_shell(tmp_path_factory: pytest.TempPathFactory, text: str, user: str) -> None:
    path = tmp_path_factory.mktemp("passwd") / "passwd"
    path.write_text(text, "utf-8", "surrogatepass")
    assert login_shell(user, {"SHELL": "/bin/sh"}, path)
