from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from click.testing import CliRunner

from agent.cli import main as cli
from agent.daemon.config import AgentConfig
from agent.daemon.options import OPTIONS
from agent.version import VERSION


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner(env={option.variable: None for option in OPTIONS if option.variable})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AgentConfig]]:
    """Stands in for the daemon; holds the configurations that it was started with."""
    configs: list[AgentConfig] = []
    app = ModuleType("agent.daemon.app")

    def run(config: AgentConfig) -> int:
        configs.append(config)
        return 0

    app.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agent.daemon.app", app)
    return iter([configs])


@pytest.mark.spec("daemon", 9)
def test_the_first_line_of_version_contains_coder(runner: CliRunner) -> None:
    result = runner.invoke(cli.main, ["--version"])
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == f"Coder {VERSION}"


@pytest.mark.spec("daemon", 9)
def test_the_version_passes_gos_semver_check() -> None:
    number = r"(0|[1-9][0-9]*)"
    assert re.fullmatch(rf"v{number}\.{number}\.{number}(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?", VERSION)


def test_the_group_imports_nothing_heavy() -> None:
    heavy = ("aiohttp", "sqlalchemy", "rich", "structlog", "google.protobuf", "asyncio", "cryptography")
    code = (
        "import contextlib, io, sys, agent.__main__\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    agent.__main__.main(['--help'])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_help_lists_every_command(runner: CliRunner) -> None:
    output = runner.invoke(cli.main, ["--help"]).output
    assert all(f"  {name} " in output for name in cli.COMMANDS)


def test_an_unknown_command(runner: CliRunner) -> None:
    result = runner.invoke(cli.main, ["magic"])
    assert result.exit_code == 2
    assert "No such command 'magic'" in result.output


def test_a_missing_extra_is_named(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named 'sqlalchemy' for {name}", name="sqlalchemy.ext")

    monkeypatch.setattr(cli, "import_module", absent)
    result = runner.invoke(cli.main, ["server"])
    assert result.exit_code == 1
    assert 'pip install "workspace-agent[server]"' in result.output


def test_flags_reach_the_daemon(runner: CliRunner, started: Iterator[list[AgentConfig]]) -> None:
    arguments = ["--agent-url", "http://127.0.0.1:1", "--agent-token=t", "--no-reap", "--block-file-transfer=false"]
    arguments += ["--agent-header", "A=1", "--agent-header", "B=2", "--pprof-address", ""]
    result = runner.invoke(cli.main, ["agent", *arguments])
    assert result.exit_code == 0, result.output
    (config,) = next(started)
    assert (config.url, config.token, config.no_reap) == ("http://127.0.0.1:1", "t", True)
    assert not config.block_file_transfer
    assert config.header == (("A", "1"), ("B", "2"))
    assert config.pprof_address == ""


@pytest.mark.spec("daemon", 1)
def test_mistakes_are_printed_and_end_with_exit_code_1(runner: CliRunner) -> None:
    result = runner.invoke(cli.main, ["agent", "--auth", "magic"])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "error: --auth: unknown agent auth type: magic; use token, aws-instance-identity, azure-instance-identity, "
        "google-instance-identity or auto",
        "error: CODER_AGENT_URL must be set",
    ]


def test_an_unknown_flag_ends_with_exit_code_1(runner: CliRunner) -> None:
    result = runner.invoke(cli.main, ["agent", "--magic"])
    assert result.exit_code == 1
    assert "No such option" in result.output


def test_help_of_the_daemon_names_flags_variables_and_defaults(runner: CliRunner) -> None:
    output = " ".join(runner.invoke(cli.main, ["agent", "--help"]).output.split())
    for option in OPTIONS:
        assert option.flag in output
    assert "[$CODER_AGENT_URL]" in output
    assert "[default: 72h]" in output
