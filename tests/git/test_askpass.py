"""What git asks, what it is answered, and how long a person is waited for."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.git import GitToken
from agent.git.askpass import Prompt, PromptError, answer, parse_prompt, token_for
from agent.testing import ManualClock

PROMPT = Prompt(True, "https://github.com")


@pytest.mark.spec("daemon", 45)
@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Username for 'https://github.com': ", Prompt(False, "https://github.com")),
        ("Password for 'https://alice@ghe.example.com:8443': ", Prompt(True, "https://ghe.example.com:8443")),
        ("Password for 'https://al:ice@github.com/owner/repo': ", Prompt(True, "https://github.com/owner/repo")),
        ('Username for "http://[::1]:80": ', Prompt(False, "http://[::1]:80")),
    ],
)
def test_prompts(text: str, prompt: Prompt) -> None:
    assert parse_prompt(text) == prompt


@pytest.mark.parametrize("text", ["", "Password for", "Enter passphrase for key: ", "Username for 'ssh://host': "])
def test_what_is_no_prompt_for_a_host(text: str) -> None:
    with pytest.raises(PromptError):
        parse_prompt(text)


@given(st.text() | st.text().map(lambda text: f"Password for '{text}"))
def test_any_text_is_a_prompt_or_none(text: str) -> None:
    try:
        prompt = parse_prompt(text)
    except PromptError:
        return
    assert prompt.host.startswith(("http://", "https://"))


@pytest.mark.spec("daemon", 45)
@pytest.mark.parametrize(
    ("token", "username", "password"),
    [(GitToken("oauth2", "secret"), "oauth2", "secret"), (GitToken("secret"), "secret", "secret")],
)
def test_answers(token: GitToken, username: str, password: str) -> None:
    assert answer(Prompt(False, "https://github.com"), token) == username
    assert answer(Prompt(True, "https://github.com"), token) == password


class Tokens:
    def __init__(self, *answers: GitToken | Exception) -> None:
        self.answers = deque(answers)
        self.asked: list[tuple[str, bool]] = []

    async def git_token(self, match: str, *, listen: bool = False) -> GitToken:
        self.asked.append((match, listen))
        if not self.answers:
            await asyncio.Event().wait()
        found = self.answers.popleft()
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.spec("daemon", 45)
async def test_waiting_for_the_owner_outlives_errors_of_the_server(clock: ManualClock) -> None:
    unauthorised = GitToken(url="https://coder/external-auth/github")
    tokens = Tokens(unauthorised, OSError("500"), OSError("500"), unauthorised, GitToken("alice", "secret"))
    told: list[str] = []
    task = asyncio.create_task(token_for(PROMPT, tokens, clock, tell=told.append, may_repeat=lambda error: True))
    await clock.advance(60)
    assert await task == GitToken("alice", "secret")
    assert unauthorised.url in told[0]
    assert tokens.asked == [(PROMPT.host, False), *[(PROMPT.host, True)] * 4]


async def test_what_cannot_get_better_ends_the_waiting(clock: ManualClock) -> None:
    tokens = Tokens(GitToken(url="x"), OSError("401"))
    with pytest.raises(OSError, match="401"):
        await token_for(PROMPT, tokens, clock, tell=lambda text: None, may_repeat=lambda error: False)


async def test_nobody_is_waited_for_where_nobody_watches(clock: ManualClock) -> None:
    tokens = Tokens(GitToken(url="https://coder/external-auth/github"))
    told: list[str] = []
    found = await token_for(PROMPT, tokens, clock, tell=told.append, may_repeat=lambda error: True, patient=False)
    assert found is None
    assert "https://coder/external-auth/github" in told[0]


async def test_waiting_can_be_cancelled(clock: ManualClock) -> None:
    tokens = Tokens(GitToken(url="x"))
    task = asyncio.create_task(token_for(PROMPT, tokens, clock, tell=lambda text: None, may_repeat=lambda error: True))
    await clock.advance(1)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


def test_secrets_are_in_no_repr() -> None:
    assert "secret" not in repr(GitToken("secret", "secret"))
