"""Variables and paths of manifest values."""

from __future__ import annotations

import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.process import expand_env, expand_path, home_directory

ENVIRONMENT = {"HOME": "/home/coder", "P": "a", "A:-b": "odd", "$": "dollar", "1": "one", "Q_2": "q"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$P", "a"),
        ("${P}", "a"),
        ("$P$P/${P}b", "aa/ab"),
        ("$Q_2x", ""),
        ("$Q_2-x", "q-x"),
        ("$NOPE", ""),
        ("${A:-b}", "odd"),
        ("${P:-b}", ""),
        ("$$", "dollar"),
        ("$1x", "onex"),
        ("$23", "3"),
        ("$*$#$@$!$?$-", ""),
        ("${}x", "x"),
        ("${abc", "abc"),
        ("$", "$"),
        ("$ x", "$ x"),
        ("$%$P", "$%a"),
        ("a$é", "a$é"),
    ],
)
def test_expand_env(text: str, result: str) -> None:
    assert expand_env(text, ENVIRONMENT) == result


@given(st.text(alphabet="$ab{}1 /é"))
def test_expand_env_takes_anything(text: str) -> None:
    assert "$" not in expand_env(text, {}).replace("$ ", "").replace("$/", "").replace("$é", "").replace(
        "$}", ""
    ).rstrip("$")


@pytest.mark.spec("daemon", 16)
@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("", ""),
        ("~", "/home/coder"),
        ("~/x/../y", "/home/coder/y"),
        ("~bob/x", "/home/coder/bob/x"),
        ("$HOME/x", "/home/coder/x"),
        ("proj", "/home/coder/proj"),
        ("$P", "/home/coder/a"),
        ("/a/../b", "/a/../b"),
        ("${NOPE}/x", "/x"),
        ("${NOPE}", "/home/coder"),
        ("//x", "//x"),
        ("../x", "/home/x"),
    ],
)
def test_expand_path(path: str, result: str) -> None:
    assert expand_path(path, ENVIRONMENT) == result


@pytest.mark.parametrize(
    ("path", "result"), [("a.log", "/logs/a.log"), ("$P/x", "/logs/a/x"), ("~/x", "/home/coder/x"), ("/x", "/x")]
)
def test_relative_to(path: str, result: str) -> None:
    assert expand_path(path, ENVIRONMENT, relative_to="/logs") == result


def test_home() -> None:
    assert home_directory({"HOME": "/h"}) == "/h"
    assert home_directory({"HOME": ""}) == home_directory({}) == pwd.getpwuid(os.geteuid()).pw_dir
    assert expand_path("~/x", {"HOME": "/"}) == "/x"
