from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.cli.client import base_url, explain
from agent.cli.errors import CliError
from agent.cli.logs import render, select_sources
from agent.cli.output import ago, print_fields, print_json, print_table

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def test_a_table_for_programs_is_aligned_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "STATUS"], [["a" * 200, "connected"], ["b", "timeout"]])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == "NAME".ljust(202) + "STATUS"
    assert first == "a" * 200 + "  connected"
    assert second == "b".ljust(202) + "timeout"


def test_an_empty_table_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "STATUS"], [])
    assert capsys.readouterr().out == "NAME  STATUS\n"


def test_empty_fields_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("name", "dev"), ("directory", "")])
    assert "directory" not in capsys.readouterr().out


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "ü"})
    assert json.loads(capsys.readouterr().out) == {"name": "ü"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (59, "59s ago"), (60, "1m ago"), (7200, "2h ago"), (200_000, "2d ago"), (-3600, "in 1h")],
)
def test_times_are_told_as_people_do(seconds: int, text: str) -> None:
    assert ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text


@pytest.mark.parametrize("nothing", [None, "", "0001-01-01T00:00:00Z"])
def test_no_time_is_a_dash(nothing: str | None) -> None:
    assert ago(nothing, NOW) == "-"


@pytest.mark.parametrize(
    ("text", "base", "rest"),
    [
        ("https://host", "https://host", ""),
        ("http://host:1/", "http://host:1", "/"),
        ("127.0.0.1:7080", "http://127.0.0.1:7080", ""),
        ("http://h/login?code=x", "http://h", "/login?code=x"),
    ],
)
def test_a_server_address_may_be_short(text: str, base: str, rest: str) -> None:
    assert base_url(text) == (base, rest)


@pytest.mark.parametrize("text", ["", "http://", "ftp://host", "http://h:99999", "http://h:port"])
def test_what_is_no_server_address_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="no server address"):
        base_url(text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"message": "No."}, "No."),
        ({"message": "No.", "detail": "because"}, "No: because"),
        ({"message": "Bad.", "validations": [{"field": "a", "detail": "b"}]}, "Bad.\n  a: b"),
        ({}, "the server answered 418 and gave no reason"),
        ([], "the server answered 418 and gave no reason"),
    ],
)
def test_an_error_body_is_told_in_a_line(body: Any, text: str) -> None:
    assert explain(body, 418) == text


def test_log_lines_are_coloured_by_level() -> None:
    assert render({"output": "plain", "level": "info"}, "") == "plain\x1b[0m"
    assert render({"output": "bad", "level": "error"}, "start").startswith("\x1b[36mstart | \x1b[0m\x1b[31mbad")


def test_log_sources_are_chosen_by_name_or_id() -> None:
    names = {"id-1": "start", "id-2": "stop", "id-3": "start"}
    assert select_sources(names, ()) is None
    assert select_sources(names, ("start",)) == {"id-1", "id-3"}
    assert select_sources(names, ("id-2", "start")) == {"id-1", "id-2", "id-3"}
    with pytest.raises(CliError, match="no log source 'nope' here; there are: start"):
        select_sources(names, ("nope",))
