from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.versions import CURRENT, OLDEST, ApiVersion, VersionRefusedError, accept_version
from agent.control.dial import next_version
from agent.control.errors import RefusedError, Validation, VersionMismatchError


def refusal(detail: str, status: int = 400, field: str = "version") -> RefusedError:
    return RefusedError("GET x", status, "Unknown or unsupported API version", validations=(Validation(field, detail),))


def negotiate(server: ApiVersion) -> list[ApiVersion]:
    """The versions that are asked for until the server accepts one."""
    asked = [CURRENT]
    while True:
        try:
            accept_version(str(asked[-1]), server)
        except VersionRefusedError as error:
            asked.append(next_version(asked[-1], refusal(str(error))))
        else:
            return asked


@pytest.mark.spec("agent-api", 25)
@given(st.integers(0, 99))
def test_the_servers_own_version_is_taken_at_the_second_attempt(minor: int) -> None:
    server = ApiVersion(2, minor)
    assert negotiate(server) == ([CURRENT] if server >= CURRENT else [CURRENT, server])


@pytest.mark.spec("daemon", 12)
def test_a_server_of_2_2_is_spoken_to_in_2_2() -> None:
    assert negotiate(ApiVersion(2, 2)) == [CURRENT, ApiVersion(2, 2)]


def test_versions_of_another_major_are_a_clear_error() -> None:
    with pytest.raises(VersionMismatchError, match="upgrade workspace-agent"):
        negotiate(ApiVersion(3, 1))
    with pytest.raises(
        VersionMismatchError, match=r"server speaks agent API 1\.0, this agent 2\.10: upgrade the server"
    ):
        negotiate(ApiVersion(1, 0))


@given(st.text())
def test_an_unreadable_refusal_steps_down_to_the_oldest_and_then_gives_up(detail: str) -> None:
    version = CURRENT
    while version > OLDEST:
        try:
            lower = next_version(version, refusal(detail))
        except VersionMismatchError:  # the text may happen to speak of another major version
            return
        assert OLDEST <= lower < version
        version = lower
    with pytest.raises(VersionMismatchError):
        next_version(version, refusal(detail))


def test_a_server_that_contradicts_itself_is_stepped_down_on() -> None:
    assert next_version(ApiVersion(2, 4), refusal("server is at version 2.9, behind …")) == ApiVersion(2, 3)


@pytest.mark.parametrize(
    "error", [refusal("x", status=401), refusal("x", field="role"), RefusedError("GET x", 400, "bad request")]
)
def test_other_refusals_are_left_alone(error: RefusedError) -> None:
    with pytest.raises(RefusedError) as caught:
        next_version(CURRENT, error)
    assert caught.value is error
