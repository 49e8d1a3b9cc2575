from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ops import AddressError, LocalAddress, parse_address
from agent.ops.address import short_path
from agent.ops.client import find_socket


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:2112", LocalAddress("127.0.0.1", 2112), True),
        ("http://127.0.0.1:2112/", LocalAddress("127.0.0.1", 2112), True),
        ("localhost:0", LocalAddress("localhost", 0), True),
        ("[::1]:80", LocalAddress("::1", 80), True),
        ("0.0.0.0:80", LocalAddress("0.0.0.0", 80), False),
        (":80", LocalAddress("::", 80), False),
        ("unix:/run/agent.sock", LocalAddress(path=Path("/run/agent.sock")), True),
    ],
)
def test_addresses(text: str, address: LocalAddress, loopback: bool) -> None:
    assert parse_address(text) == address
    assert address.is_loopback is loopback


@pytest.mark.parametrize("text", ["2112", "127.0.0.1", "127.0.0.1:", "a:70000", "host:80", "unix:x", "::1:x", "a:٣"])
def test_what_is_none_is_told_with_an_example(text: str) -> None:
    with pytest.raises(AddressError, match=r"127\.0\.0\.1:2112|absolute"):
        parse_address(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    with contextlib.suppress(AddressError):
        found = parse_address(text)
        assert isinstance(found.is_loopback, bool)
        assert found.path is not None or parse_address(str(found)) == found


def test_a_socket_may_have_a_long_name(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory" * 5] * 4)
    deep.mkdir(parents=True)
    with short_path(deep / "a") as name:
        assert len(name) < 100
        Path(name).write_text("here")
    assert (deep / "a").read_text() == "here"
    assert not os.path.exists(name)


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"CODER_AGENT_STATUS_SOCKET": "/run/x", "CODER_AGENT_STATE_DIR": "/var/y"}, "/run/x"),
        ({"CODER_AGENT_STATUS_SOCKET": "none", "CODER_AGENT_STATE_DIR": "/var/y"}, "/var/y/status.sock"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/workspace-agent/status.sock"),
        ({"HOME": "/h"}, "/h/.local/state/workspace-agent/status.sock"),
    ],
)
def test_where_the_agent_is_asked(environment: dict[str, str], path: str) -> None:
    assert find_socket(environment) == Path(path)
