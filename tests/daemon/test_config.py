from __future__ import annotations

import pwd
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.daemon.config import AgentConfig, ConfigError, parse_config
from agent.daemon.options import OPTIONS, parse_duration, parse_record, parse_url

REQUIRED = {"CODER_AGENT_URL": "https://coder.example.com", "CODER_AGENT_TOKEN": "t0k3n", "HOME": "/home/coder"}


def config(environment: Mapping[str, str] | None = None, **flags: str) -> AgentConfig:
    return parse_config({name: [text] for name, text in flags.items()}, {**REQUIRED, **(environment or {})})


def problems(environment: Mapping[str, str], **flags: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config({name: [text] for name, text in flags.items()}, environment)
    return caught.value.problems


def problem(environment: Mapping[str, str], **flags: str) -> str:
    (only,) = problems({**REQUIRED, **environment}, **flags)
    return only


def test_every_option_has_its_attribute() -> None:
    beside = {"subsystems", "credentials_directory"}
    assert {option.name for option in OPTIONS} == {field.name for field in fields(AgentConfig)} - beside


def test_defaults() -> None:
    given = config()
    assert given.auth == "token"
    assert given.state_dir == Path("/home/coder/.local/state/workspace-agent")
    assert given.log_dir == given.script_data_dir == Path("/tmp")
    assert given.log_human == "/dev/stderr"
    assert given.pprof_address == "127.0.0.1:6060"
    assert given.ssh_max_timeout == 72 * 3600
    assert given.devcontainers_enable
    assert not given.no_reap
    assert given.boundary_log_proxy_socket_path == "/tmp/boundary-audit.sock"


def test_directories_follow_the_environment() -> None:
    given = config({"TMPDIR": "/var/tmp", "XDG_STATE_HOME": "/state"})
    assert given.state_dir == Path("/state/workspace-agent")
    assert given.log_dir == Path("/var/tmp")
    assert config({"CODER_AGENT_STATE_DIR": "/x"}).state_dir == Path("/x")


def test_without_a_known_home_the_state_directory_is_no_tilde_below_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(_: int) -> object:
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert config({"HOME": ""}).state_dir == Path("/.local/state/workspace-agent")


def test_a_flag_wins_over_its_variable() -> None:
    assert config({"CODER_AGENT_URL": "http://variable"}, url="http://flag").url == "http://flag"
    assert config({"CODER_AGENT_URL": "http://variable"}).url == "http://variable"


def test_homebrew_variables_stand_in_for_absent_ones() -> None:
    environment = {"HOMEBREW_CODER_AGENT_LOG_DIR": "/brew"}
    assert config(environment).log_dir == Path("/brew")
    assert config({**environment, "CODER_AGENT_LOG_DIR": "/mine"}).log_dir == Path("/mine")


def test_an_empty_text_is_a_value_where_it_means_something() -> None:
    empty = config({"CODER_AGENT_PPROF_ADDRESS": "", "CODER_AGENT_DEVCONTAINERS_ENABLE": ""}, log_human="")
    assert empty.pprof_address == ""
    assert not empty.devcontainers_enable
    assert empty.log_human == ""


def test_an_empty_text_is_the_default_where_it_means_nothing() -> None:
    empty = config({"CODER_AGENT_AUTH": "", "CODER_AGENT_TAILNET_LISTEN_PORT": "", "CODER_AGENT_LOG_DIR": ""})
    assert (empty.auth, empty.tailnet_listen_port, empty.log_dir) == ("token", 0, Path("/tmp"))


@pytest.mark.spec("daemon", 3)
def test_headers_of_the_variable_are_one_csv_record() -> None:
    assert config({"CODER_AGENT_HEADER": 'A=1,"B=x,y"'}).header == (("A", "1"), ("B", "x,y"))


def test_headers_of_variable_and_flags_add_up() -> None:
    given = parse_config({"header": ["B=2,C=3", "D=4"]}, {**REQUIRED, "CODER_AGENT_HEADER": "A=1"})
    assert given.header == (("A", "1"), ("B", "2"), ("C", "3"), ("D", "4"))


def test_no_secret_is_shown() -> None:
    given = config({"CODER_AGENT_HEADER": "A=hunter2", "CODER_AGENT_HEADER_COMMAND": "echo B=hunter2"}, token="hunter2")
    assert "hunter2" not in repr(given)


def test_a_user_in_the_url_is_refused_and_not_shown() -> None:
    text = problem({}, url="https://me:hunter2@coder.example.com")
    assert text.startswith("--agent-url: a user or password in the URL is not supported")
    assert "hunter2" not in text


@pytest.mark.spec("daemon", 1)
def test_without_url_and_token() -> None:
    assert problems({}) == (
        "CODER_AGENT_URL must be set",
        "Either CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE must be set",
    )


def test_a_file_or_a_credential_is_as_good_as_a_token() -> None:
    for variable in ("CODER_AGENT_TOKEN_FILE", "CREDENTIALS_DIRECTORY"):
        assert config({"CODER_AGENT_TOKEN": "", variable: "/run/x"}).token == ""
    assert config({"CREDENTIALS_DIRECTORY": "/run/x"}).credentials_directory == "/run/x"


@pytest.mark.spec("daemon", 1)
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CODER_AGENT_AUTH": "magic"}, "CODER_AGENT_AUTH: unknown agent auth type: magic"),
        ({"CODER_AGENT_AUTH": "instance-identity"}, "unknown agent auth type: instance-identity; use token"),
        ({"CODER_AGENT_SUBSYSTEM": "envbox, magic"}, 'CODER_AGENT_SUBSYSTEM: invalid subsystem "magic"'),
        ({"CODER_AGENT_URL": "coder.example.com"}, "CODER_AGENT_URL: this is not the URL of a control plane"),
        ({"CODER_AGENT_URL": "ftp://coder.example.com"}, "CODER_AGENT_URL: this is not the URL of a control plane"),
        ({"CODER_AGENT_URL": "https://"}, "CODER_AGENT_URL: this is not the URL of a control plane"),
        ({"CODER_AGENT_URL": "https://h:99999"}, "CODER_AGENT_URL: this is not the URL of a control plane"),
        ({"CODER_AGENT_HEADER": "A=1,B"}, 'CODER_AGENT_HEADER: item 2 has no "="'),
        ({"CODER_AGENT_HEADER": 'A=1,"B'}, "CODER_AGENT_HEADER: no list of comma-separated values"),
        ({"CODER_AGENT_BLOCK_FILE_TRANSFER": "yes"}, 'FILE_TRANSFER: "yes" is neither true nor false'),
        ({"CODER_AGENT_SSH_MAX_TIMEOUT": "3 days"}, 'CODER_AGENT_SSH_MAX_TIMEOUT: "3 days" is no duration'),
        ({"CODER_AGENT_TAILNET_LISTEN_PORT": "0x10"}, '"0x10" is no whole number'),
        ({"CODER_AGENT_TERMINAL_IDLE": "0"}, '"0" is not from 1s to 30d'),
        ({"CODER_AGENT_TERMINAL_HISTORY": "10"}, "10 bytes of a terminal's output cannot be kept"),
        ({"CODER_AGENT_TERMINAL_HISTORY": "1000000000"}, "from 4096 to 1048576 are possible"),
    ],
)
def test_a_mistake_names_its_variable(environment: dict[str, str], message: str) -> None:
    assert message in problem(environment)


def test_a_mistake_in_a_flag_names_the_flag() -> None:
    assert problem({}, ssh_max_timeout="soon").startswith("--ssh-max-timeout: ")
    assert problem({}, no_reap="maybe").startswith("--no-reap: ")


def test_all_mistakes_are_reported_together() -> None:
    found = problems({"CODER_AGENT_SUBSYSTEM": "x", "CODER_AGENT_AUTH": "y"}, ssh_max_timeout="z")
    assert len(found) == 4


@pytest.mark.spec("daemon", 9)
def test_subsystems_are_trimmed_and_counted_once() -> None:
    assert config({"CODER_AGENT_SUBSYSTEM": "exectrace, envbox,,exectrace "}).subsystems == ("exectrace", "envbox")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1w", 604800),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("0", 0),
        ("-5s", -5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_a_port_is_cut_to_16_bits() -> None:
    assert config(tailnet_listen_port="65537").tailnet_listen_port == 1


@given(st.lists(st.text(st.characters(exclude_characters="\r\n\0")).filter(bool), min_size=1))
def test_quoted_records_are_read_back(items: list[str]) -> None:
    assert parse_record(",".join('"' + item.replace('"', '""') + '"' for item in items)) == items


@pytest.mark.parametrize(
    "host", ["a..b", "x\\y", "[::1]]", "xn--a", "a b", "a ", "\udcff", "\u200d", f"{'a' * 64}.com", "ü" * 64]
)
def test_a_host_that_cannot_be_one_is_refused(host: str) -> None:
    assert "CODER_AGENT_URL: this is not the URL of a control plane" in problem({"CODER_AGENT_URL": f"http://{host}"})


@given(st.text("htps:/.@[]%a1é\udcff ?#-_*\\~x0").map(lambda text: f"http://{text}"))
def test_any_url_that_is_taken_is_usable(text: str) -> None:
    try:
        parse_url(text)
    except ValueError:
        return
    host = URL(text).origin().host
    assert host
    assert host.encode("idna")


@given(st.dictionaries(st.sampled_from([option.variable for option in OPTIONS if option.variable]), st.text()))
def test_any_environment_gives_a_configuration_or_the_typed_error(environment: dict[str, str]) -> None:
    with suppress(ConfigError):
        parse_config({}, environment)
