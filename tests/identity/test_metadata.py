"""The rules for asking a metadata service: bounds, retries, and what the errors say."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.identity.metadata import (
    ATTEMPT_LIMIT,
    ATTEMPTS,
    TOTAL_LIMIT,
    Answer,
    AskError,
    MetadataError,
    ProofError,
    RefusedByMetadataError,
    UnansweredError,
    endpoint,
)
from agent.identity.token import IdentityError
from agent.testing import ManualClock, settle
from tests.identity.scripted import Reply, ScriptedAsker, ok


async def run(clock: ManualClock, asker: ScriptedAsker, target: str = "/thing") -> Answer | MetadataError:
    """The outcome of one question, with the clock moved on for as long as that takes."""
    task = asyncio.create_task(asker.service(clock).ask("GET", target, {"A": "b"}))
    try:
        while not task.done():
            await settle()
            if not task.done():
                await clock.advance(0.05)
        return task.result()
    except MetadataError as error:
        return error
    finally:
        task.cancel()


async def test_what_is_sent_is_what_was_given() -> None:
    asker = ScriptedAsker(ok("body"))
    answer = await run(ManualClock(), asker, "/a?audience=coder&format=full")
    assert isinstance(answer, Answer)
    assert answer.body == b"body"
    assert asker.requests == [("GET", "http://169.254.169.254/a?audience=coder&format=full", {"A": "b"})]


@pytest.mark.parametrize("passing", [Answer(503, b""), Answer(410, b""), Answer(429, b""), AskError("broke")])
async def test_what_passes_is_asked_again(passing: Reply) -> None:
    asker = ScriptedAsker(passing, passing, ok("body"))
    clock = ManualClock()
    assert isinstance(await run(clock, asker), Answer)
    assert [round(time, 2) for time in asker.times] == [0.0, 0.1, 0.3]


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405])
async def test_what_does_not_pass_is_not(status: int) -> None:
    asker = ScriptedAsker(Answer(status, b"secret"))
    error = await run(ManualClock(), asker)
    assert isinstance(error, RefusedByMetadataError)
    assert error.status == status
    assert len(asker.requests) == 1
    assert "secret" not in str(error)
    assert f"GET http://169.254.169.254/thing: answered with status {status}" in str(error)


async def test_five_attempts_are_the_most() -> None:
    asker = ScriptedAsker(Answer(500, b""))
    assert isinstance(await run(ManualClock(), asker), RefusedByMetadataError)
    assert len(asker.requests) == ATTEMPTS


@pytest.mark.parametrize(("connected", "text"), [(True, "no answer came in time"), (False, "nobody answers")])
async def test_silence_ends_at_the_limit(connected: bool, text: str) -> None:
    asker = ScriptedAsker(None, connected=connected)
    clock = ManualClock()
    error = await run(clock, asker)
    assert isinstance(error, UnansweredError)
    assert error.silent is connected
    assert text in str(error)
    assert TOTAL_LIMIT - ATTEMPT_LIMIT <= clock.now() <= TOTAL_LIMIT + 0.05
    assert len(asker.requests) == 3


async def test_all_questions_of_a_service_share_its_time() -> None:
    clock = ManualClock()
    asker = ScriptedAsker(None)
    service = asker.service(clock)
    await clock.advance(TOTAL_LIMIT - 0.5)
    task = asyncio.create_task(service.ask("GET", "/", {}))
    await clock.advance(0.5)
    with pytest.raises(UnansweredError):
        await task
    late = asyncio.create_task(service.ask("GET", "/", {}))
    await settle()
    with pytest.raises(UnansweredError):
        await late


async def test_an_unusable_answer_is_asked_again_and_then_told() -> None:
    def check(answer: Answer) -> None:
        if answer.body == b"bad":
            raise ProofError("the thing", "it is bad", answer)

    clock = ManualClock()
    asker = ScriptedAsker(ok("bad", content_type="text/html; charset=utf-8"), ok("good"))
    task = asyncio.create_task(asker.service(clock).ask("GET", "/", {}, check))
    await clock.advance(1)
    assert (await task).body == b"good"
    asker = ScriptedAsker(ok("bad", content_type="text/html; charset=utf-8"))
    task = asyncio.create_task(asker.service(clock).ask("GET", "/", {}, check))
    await clock.advance(5)
    with pytest.raises(ProofError, match=r"the thing is unusable: it is bad \(3 bytes, text/html\)"):
        await task


async def test_cancelling_leaves_nothing_behind() -> None:
    clock = ManualClock()
    before = asyncio.all_tasks()
    for replies in ((None,), (Answer(503, b""),)):
        task = asyncio.create_task(ScriptedAsker(*replies).service(clock).ask("GET", "/", {}))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
    assert asyncio.all_tasks() == before


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([Answer(503, b""), Answer(200, b""), Answer(404, b""), AskError("x"), None]), min_size=1)
)
async def test_it_always_ends_in_time(replies: list[Reply]) -> None:
    clock = ManualClock()
    asker = ScriptedAsker(*replies)
    await run(clock, asker)
    assert clock.now() <= TOTAL_LIMIT + 0.05
    assert 1 <= len(asker.requests) <= ATTEMPTS


def test_repr_and_texts_hold_no_content() -> None:
    answer = Answer(200, b"secret", {"x": "hidden"})
    assert "secret" not in repr(answer)
    assert "hidden" not in repr(answer)


@pytest.mark.parametrize(
    "text", ["", "169.254.169.254", "https://x", "ftp://x", "http://", "http://u:p@x", "http://[", "http://x:99999"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(IdentityError, match="VARIABLE is not the address of a metadata service"):
        endpoint("VARIABLE", text)


@given(st.text())
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        url = endpoint("VARIABLE", text)
    except IdentityError:
        return
    assert url.scheme == "http"
    assert url.host
